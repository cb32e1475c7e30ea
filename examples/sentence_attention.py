"""Learn one sentence, continue it from its first half, and draw which character reads which.

Run with ``python examples/sentence_attention.py [PICTURE]``; the picture goes to
``docs/images/sentence_attention.png`` unless it is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cattn.lm import (
    ModelConfig,
    NextWordModel,
    Trainer,
    TrainSettings,
    WordTokenizer,
    draw_attention,
    generate,
    prepare,
    print_attention,
)
from cattn.lm.tokenizer import split

SENTENCE = "我喜欢编程，因为它让我感到满足。"
FIRST_HALF = "我喜欢编程，"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "sentence_attention.png"


def learn(sentence: str) -> tuple[NextWordModel, WordTokenizer]:
    """Train a small model on nothing but one sentence: about a second."""
    tokenizer, data = prepare(sentence + "\n", held_out=0.0)
    config = ModelConfig(len(tokenizer), context=len(data.train) - 1, width=32, heads=4)
    settings = TrainSettings(steps=150, batch=8, lr=0.3, warmup=10)
    trainer = Trainer.new(config, tokenizer, data, settings)
    trainer.run()
    return trainer.model, tokenizer


def main(picture: Path) -> None:
    """Train, continue, draw."""
    model, tokenizer = learn(SENTENCE)
    rest = len(split(SENTENCE)) - len(split(FIRST_HALF))
    print(generate(model, tokenizer, FIRST_HALF, words=rest, temperature=0))

    words = split(SENTENCE)
    weights = model.attention_weights(tokenizer.encode_tokens(words))[-1]
    print_attention(words, weights.mean(axis=0), sys.stdout)
    picture.parent.mkdir(parents=True, exist_ok=True)
    if not draw_attention(words, weights.mean(axis=0), picture):
        print("no installed font has these characters: the picture numbers them as above")
    print(f"drawn into {picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
