"""Torch networks of the kinds that people bring, small by default, deeper where asked for."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
from tools.published_networks import CifarResNet

CLASSES = 10


def vgg(depth: int = 1, width: int = 8) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (width, 2 * width):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(inplace=True)]
            inputs = outputs
        layers += [nn.MaxPool2d(2, 2)]
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d((3, 3)),
            flat=nn.Flatten(),
            classifier=nn.Sequential(
                nn.Linear(9 * inputs, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)
            ),
        )
    )


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet(layers: int = 2, growth: int = 4) -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, bias=False)]
    channels = 8
    for stage in range(2):
        for _ in range(layers):
            parts.append(DenseLayer(channels, growth))
            channels += growth
        if stage == 0:
            parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1)]
            parts += [nn.AvgPool2d(2)]
            channels //= 2
    parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(channels, CLASSES))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: nn.Module):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(2, channels // 4), 1)
        self.fc2 = nn.Conv2d(max(2, channels // 4), channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(F.relu(self.fc1(scale))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: type[nn.Module],
        gate: nn.Module | None,
        kernel: int = 3,
    ):
        super().__init__()
        hidden = 3 * inputs
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
        ]
        if gate is not None:
            layers.append(SqueezeExcite(hidden, gate))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _mobile(activation: type[nn.Module], gate: nn.Module | None, blocks: int) -> nn.Module:
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), activation()]
    for _ in range(blocks):
        parts.append(InvertedResidual(8, 8, 1, activation, gate))
    parts.append(InvertedResidual(8, 12, 2, activation, gate, kernel=5))
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 24), activation()]
    return nn.Sequential(*parts, nn.Dropout(0.2), nn.Linear(24, CLASSES))


def mobilenet_v2(blocks: int = 1) -> nn.Module:
    return _mobile(nn.ReLU6, None, blocks)


def mobilenet_v3(blocks: int = 1) -> nn.Module:
    return _mobile(nn.Hardswish, nn.Hardsigmoid(), blocks)


def efficientnet(blocks: int = 1) -> nn.Module:
    return _mobile(nn.SiLU, nn.Sigmoid(), blocks)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(out)))
        return x + out.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, blocks: int = 1, width: int = 8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 2, 2), ChannelNorm(width))
        self.stages = nn.Sequential(
            *(ConvNeXtBlock(width) for _ in range(blocks)),
            ChannelNorm(width),
            nn.Conv2d(width, 2 * width, 2, 2),
            *(ConvNeXtBlock(2 * width) for _ in range(blocks)),
        )
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean((-2, -1))))


class Encoder(nn.Module):
    """A vision transformer of PyTorch's own encoder layers: class token, position parameters."""

    def __init__(self, depth: int = 1, width: int = 16, size: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, (size // 4) ** 2 + 1, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Attention(nn.Module):
    """Queries, keys and values of one linear layer, and the dot products as functions."""

    def __init__(self, width: int, heads: int, *, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = attention
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Like timm's: attention of its own, LayerScale, the mean of the tokens."""

    def __init__(self, depth: int = 1, width: int = 16, *, fused: bool = True):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.blocks = nn.Sequential(
            *(Block(width, Attention(width, 4, fused=fused)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).mT + self.pos_embed
        return self.head(self.norm(self.blocks(x)).mean(1))


class WindowAttention(nn.Module):
    """Swin's: within windows, shifted ones masked, with a table of relative positions."""

    def __init__(self, width: int, heads: int, window: int, shift: int, size: int):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = at.flatten(1)[:, :, None] - at.flatten(1)[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        regions = torch.zeros(1, size, size, 1)
        count = 0
        edges = (slice(0, -window), slice(-window, -shift or None), slice(-shift or size, None))
        for rows in edges:
            for columns in edges:
                regions[:, rows, columns] = count
                count += 1
        parts = self._parts(regions).squeeze(-1)
        apart = parts[:, None] - parts[:, :, None]
        mask = torch.zeros_like(apart).masked_fill(apart != 0, -100.0) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def _parts(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w = self.window
        x = x.view(batch, height // w, w, width // w, w, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        parts = self._parts(x)
        count, tokens, _ = parts.shape
        qkv = self.qkv(parts).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1) / (channels // self.heads) ** 0.5
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = scores + bias
        if self.mask is not None:
            windows = len(self.mask)
            scores = scores.view(-1, windows, self.heads, tokens, tokens)
            scores = (scores + self.mask[None, :, None]).view(-1, self.heads, tokens, tokens)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, channels)
        w = self.window
        out = self.proj(out).view(batch, height // w, width // w, w, w, channels)
        out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        return torch.roll(out, (self.shift, self.shift), (1, 2)) if self.shift else out


class Swin(nn.Module):
    def __init__(self, depth: int = 1, width: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(
            *(
                Block(width, WindowAttention(width, 2, 4, shift, 8))
                for _ in range(depth)
                for shift in (0, 2)
            )
        )
        self.merge = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.norm(self.merge(torch.cat(quarters, -1)))
        return self.head(x.flatten(1, 2).transpose(1, 2).mean(-1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, depth: int = 1, width: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def keyword_spotting(blocks: int = 1) -> nn.Module:
    """Depthwise separable convolutions over a signal `[batch, 1, length]`; a log-softmax head."""
    parts: list[nn.Module] = [nn.Conv1d(1, 8, 16, 4, bias=False), nn.BatchNorm1d(8), nn.ReLU()]
    for _ in range(blocks):
        parts += [nn.Conv1d(8, 8, 9, padding=4, groups=8), nn.Conv1d(8, 8, 1)]
        parts += [nn.GroupNorm(2, 8), nn.PReLU(8), nn.MaxPool1d(2)]
    parts += [nn.InstanceNorm1d(8, affine=True), nn.AdaptiveAvgPool1d(3), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(24, CLASSES), nn.LogSoftmax(dim=-1))


class Words(nn.Module):
    """Token ids `[batch, length]`; an embedding tied to the last layer."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.gru(self.embedding(ids))
        return self.head(out[:, -1])


class Recurrent(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.lstm = nn.LSTM(4, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


class Volume(nn.Module):
    """Convolutions in three dimensions, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose3d(4, 3, 2, stride=2)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.leaky_relu(self.conv(x)), 2)
        return self.head(self.up(x).mean((2, 3, 4)))


Network = tuple[Callable[[], nn.Module], Sequence[int]]
"""What makes a network, and the shape of one of its inputs in PyTorch's layout."""

IMAGE = (3, 16, 16)

NETWORKS: dict[str, Network] = {
    "ResNet": (CifarResNet, IMAGE),
    "VGG": (vgg, IMAGE),
    "DenseNet": (densenet, IMAGE),
    "MobileNetV2": (mobilenet_v2, IMAGE),
    "MobileNetV3": (mobilenet_v3, IMAGE),
    "EfficientNet": (efficientnet, IMAGE),
    "ConvNeXt": (ConvNeXt, IMAGE),
    "TransformerEncoder": (Encoder, IMAGE),
    "ViT": (Vit, IMAGE),
    "ViT, plain attention": (lambda: Vit(fused=False), IMAGE),
    "Swin": (Swin, IMAGE),
    "Mixer": (Mixer, IMAGE),
    "keyword spotting": (keyword_spotting, (1, 128)),
    "recurrent": (Recurrent, (3, 4)),
    "volume": (Volume, (1, 4, 4, 4)),
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with normalisations that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if tensor.is_floating_point():
                    draws = torch.rand(tensor.shape, generator=generator)
                    spread = 0.5 + draws if name in ("weight", "running_var") else draws - 0.5
                    tensor.data.copy_(spread)
    return module.eval()


def resnet56() -> nn.Module:
    """What `benchmark curvature --model tests.torch_networks:resnet56` measures."""
    torch.manual_seed(0)
    return randomised(CifarResNet(blocks=9))


def resnet18() -> nn.Module:
    """ResNet-18 of the standard width, measured in the same way."""
    torch.manual_seed(0)
    return randomised(bridge.weights.resnet18(CLASSES, "cifar"))


def made(name: str, seed: int = 0) -> tuple[nn.Module, Sequence[int]]:
    """A network of a kind, the same at each call, and the shape of one input."""
    factory, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(factory(), seed), shape
