"""A small transformer that predicts the next character, and a text to train it on: the help topics of Python."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

CONTEXT = 64


class Characters(Dataset):
    """Pieces of a text, and the same pieces one character further on; both int64 of shape (CONTEXT,)."""

    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))

    def __init__(self, training: bool) -> None:
        index = {character: number for number, character in enumerate(self.alphabet)}
        codes = torch.tensor([index[character] for character in self.text])
        border = len(codes) * 9 // 10
        self.codes = codes[:border] if training else codes[border:]

    def __len__(self) -> int:
        return (len(self.codes) - 1) // CONTEXT

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        piece = self.codes[number * CONTEXT : (number + 1) * CONTEXT + 1]
        return piece[:-1], piece[1:]


class Attention(nn.Module):
    """Each position looks at those before it. Its number of heads follows from the width of what comes in."""

    def __init__(self, width: int, head_width: int = 16) -> None:
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        # Under tensor parallelism a process has some of the heads: -1 is how many.
        q, k, v = (
            project(x).view(batch, length, -1, self.head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """Attention and a feed-forward network, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))


class Transformer(nn.Module):
    """From characters of shape (batch, CONTEXT) to scores of shape (batch * CONTEXT, alphabet)."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(Characters.alphabet), width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, len(Characters.alphabet))

    def forward(self, characters: Tensor) -> Tensor:
        positions = torch.arange(characters.shape[1], device=characters.device)
        x = self.characters(characters) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        return self.scores(self.norm(x).flatten(0, 1))
