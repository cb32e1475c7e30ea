"""A next-word model trained on `cattn.attention`, with every gradient written by hand.

>>> from cattn.lm import ModelConfig, Trainer, TrainSettings, generate, prepare
>>> tokenizer, data = prepare("the cat sat on the mat and the dog sat on the log . " * 20)
>>> config = ModelConfig(len(tokenizer), context=8, width=32, dropout=0.0)
>>> trainer = Trainer.new(config, tokenizer, data, TrainSettings(steps=100, batch=4, warmup=5))
>>> trainer.run()
'finished'
>>> generate(trainer.model, tokenizer, "the cat", words=4, temperature=0)
'the cat sat on the mat'
"""

from cattn.lm.cache import KeyValueCache
from cattn.lm.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from cattn.lm.errors import InputError
from cattn.lm.generation import generate, next_word_probabilities
from cattn.lm.model import ModelConfig, NextWordModel
from cattn.lm.ngram import NgramLosses, ngram_losses
from cattn.lm.optim import (
    SGD,
    Adam,
    Optimizer,
    clip_by_global_norm,
    learning_rate,
    make_optimizer,
)
from cattn.lm.picture import draw_attention, print_attention
from cattn.lm.text import default_text, read_text
from cattn.lm.tokenizer import WordTokenizer
from cattn.lm.trainer import Dataset, Record, Trainer, TrainSettings, prepare, suggested_steps

__all__ = [
    "SGD",
    "Adam",
    "Checkpoint",
    "Dataset",
    "InputError",
    "KeyValueCache",
    "ModelConfig",
    "NextWordModel",
    "NgramLosses",
    "Optimizer",
    "Record",
    "TrainSettings",
    "Trainer",
    "WordTokenizer",
    "clip_by_global_norm",
    "default_text",
    "draw_attention",
    "generate",
    "learning_rate",
    "load_checkpoint",
    "load_model",
    "make_optimizer",
    "next_word_probabilities",
    "ngram_losses",
    "prepare",
    "print_attention",
    "read_text",
    "save_checkpoint",
    "suggested_steps",
]
