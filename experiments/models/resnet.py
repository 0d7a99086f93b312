"""ResNet-18 for small images."""

import jax
from flax import nnx

# torchvision's choice; it keeps the variance of the gradients from layer to layer.
_KERNEL_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def conv(cin: int, cout: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        cin,
        cout,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_KERNEL_INIT,
        rngs=rngs,
    )


def batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, and a projection where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = conv(cin, cout, 3, stride, rngs)
        self.norm1 = batch_norm(cout, rngs)
        self.conv2 = conv(cout, cout, 3, 1, rngs)
        self.norm2 = batch_norm(cout, rngs)
        changes = stride != 1 or cin != cout
        self.shortcut = (
            nnx.Sequential(conv(cin, cout, 1, stride, rngs), batch_norm(cout, rngs))
            if changes
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nnx.Module):
    """He et al. 2016, with a 3x3 stem and no max-pooling, as usual for CIFAR."""

    def __init__(self, channels: int, num_classes: int, width: int, rngs: nnx.Rngs):
        self.stem = conv(channels, width, 3, 1, rngs)
        self.norm = batch_norm(width, rngs)
        widths = [width * 2**stage for stage in range(4)]
        self.blocks = nnx.List(
            [
                block
                for stage, cout in enumerate(widths)
                for block in (
                    BasicBlock(
                        widths[max(stage - 1, 0)], cout, 2 if stage else 1, rngs
                    ),
                    BasicBlock(cout, cout, 1, rngs),
                )
            ]
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))
