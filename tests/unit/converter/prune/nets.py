"""Small networks, one for each way in which layers go together."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import train


def norm(channels):
    """A batch norm with statistics."""
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5)
        made.bias.uniform_(-0.2, 0.2)
        made.running_mean.uniform_(-0.2, 0.2)
        made.running_var.uniform_(0.5, 1.5)
    return made


class Block(nn.Module):
    """Residual."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), norm(outside)
        self.conv2, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), norm(outside)
        self.down = nn.Sequential()
        if stride != 1 or inside != outside:
            self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x):
        return functional.relu(self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))) + self.down(x))


class ResNet(nn.Module):
    def __init__(self, width=16, classes=10, inside=1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(inside, width, 3, 1, 1, bias=False), norm(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class DenseNet(nn.Module):
    """Each layer reads all before it."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(norm((i + 1) * width), nn.ReLU(), nn.Conv2d((i + 1) * width, width, 3, padding=1))
            for i in range(3)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(torch.cat(found, 1).mean((2, 3)))


class Split(nn.Module):
    """A gate: one half of the channels multiplies the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(1, 32, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        return self.head(functional.relu(self.mix(a * torch.sigmoid(b))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between others, as in ResNeXt, and a flattening."""

    def __init__(self):
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(1, 32, 1, bias=False), norm(32)
        self.middle, self.norm2 = nn.Conv2d(32, 32, 3, groups=4, bias=False, stride=2), norm(32)
        self.expand, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16 * 9, 10)

    def forward(self, x):
        x = functional.relu(self.norm1(self.reduce(x)))
        x = functional.relu(self.expand(functional.relu(self.norm2(self.middle(x)))))
        return self.head(x.flatten(1))


class _Attention(nn.Module):
    """As in timm: one layer for queries, keys and values, and a stored head width."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, dim // heads, dim
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, self.attn_dim))


class _VitBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """Of 8x8 images; 4 patches a side."""

    def __init__(self, dim=32, heads=4, blocks=2, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(*(_VitBlock(dim, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """PyTorch's own transformer layers, over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(self.rows(x.squeeze(1))).mean(1))


class SuperResolution(nn.Module):
    """Twice as many pixels a side."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (
            *(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        return self.last(self.shuffle(functional.relu(self.second(functional.relu(self.first(x))))))


def image(batch=2):
    torch.manual_seed(5)
    return (torch.randn(batch, 1, 8, 8),)


def digits():
    """scikit-learn's digits: training batches, and test images with their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    classes = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, classes = images[order], classes[order]
    batches = [(images[i : i + 64], classes[i : i + 64]) for i in range(0, 1280, 64)]
    return batches, images[1280:], classes[1280:]


def trained(net, epochs=4, lr=5e-3):
    """The net, trained on the digits."""
    torch.manual_seed(0)
    return train(net, digits()[0], epochs=epochs, lr=lr).model


@torch.no_grad()
def accuracy(model):
    _, images, classes = digits()
    return float((model(images).argmax(1) == classes).float().mean())
