"""A clear word where Python finds cattn's sources in place of an installed cattn."""

try:
    import cattn._core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "cattn._core":
        raise
    from pathlib import Path

    raise ImportError(
        f"{Path(__file__).parent} holds the sources of cattn, without its compiled core, and hides "
        "an installed cattn: install it (pip install .) and run Python from another folder"
    ) from None
