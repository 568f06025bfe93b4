"""Draw `figure2.svg`: how L_Total is computed, as published and as here.

    python docs/figure2.py [file]

"Auto. Diff." blocks differentiate uᵀs(x̃; θ). Black arrows are the forward computation. The gradient
in θ flows back along the blue ones (primary component), and as published also along the red ones
(secondary component), in a backward pass of its own.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from qcsbm.report.figures import style

VALUE, BLOCK, LOSS = "white", "#e8e8e8", "#dcefe7"
PRIMARY, SECONDARY = style.BLUE, style.VERMILLION


@dataclass(frozen=True)
class Node:
    """A box around (x, y), ``width`` wide and ``height`` high."""

    x: float
    y: float
    width: float
    height: float

    def edge(self, dx: float, dy: float) -> np.ndarray:
        """Where the ray from the middle in the direction (dx, dy) leaves the box."""
        scale = min(
            self.width / 2 / abs(dx) if dx else np.inf, self.height / 2 / abs(dy) if dy else np.inf
        )
        return np.array([self.x + scale * dx, self.y + scale * dy])


def node(
    axes: Axes, x: float, y: float, text: str, width: float, color: str = VALUE, height: float = 0.5
) -> Node:
    corner = (x - width / 2, y - height / 2)
    look = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": color, "lw": 0.8}
    axes.add_patch(FancyBboxPatch(corner, width, height, edgecolor=style.BLACK, **look))
    axes.text(x, y, text, ha="center", va="center", fontsize=7.5)
    return Node(x, y, width, height)


def arrow(axes: Axes, start: Node, end: Node, color: str = style.BLACK, shift: float = 0) -> None:
    """From edge to edge, moved by ``shift`` to the left of its direction."""
    dx, dy = end.x - start.x, end.y - start.y
    aside = np.array([-dy, dx]) / np.hypot(dx, dy) * shift
    look = {"arrowstyle": "-|>", "color": color, "lw": 0.9, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", end.edge(-dx, -dy) + aside, start.edge(dx, dy) + aside, arrowprops=look)


def back(axes: Axes, path: list[Node], color: str = PRIMARY, shift: float = 0.11) -> None:
    """The gradient's way from the first node of ``path`` to the last."""
    for start, end in zip(path, path[1:], strict=False):
        arrow(axes, start, end, color, shift)


def draw(axes: Axes, published: bool) -> None:
    axes.set(xlim=(-0.4, 11.2), ylim=(0.4, 3.7), aspect="equal")
    axes.axis("off")
    x = node(axes, 0, 2, "x̃", 0.6)
    s = node(axes, 1.7, 2, "s(x̃; θ)", 1.1)
    matching = node(axes, 6.1, 3.3, "$L_{SM}$", 0.8, LOSS)
    total = node(axes, 10.7, 2.4, "$L_{Total}$", 0.9, LOSS)
    if published:
        axes.set_title("(a) as published: two products with Jᵀ, and two backward passes")
        texts = "v", "in x̃, u = v", "a = Jᵀv", "in x̃, u = sg[a]", "b = Jᵀ sg[a]"
        estimate = "aᵀa − bᵀv"
    else:
        axes.set_title("(b) here: Jv is the derivative of aᵀv in w, and one backward pass suffices")
        texts = "v", "in x̃, u = w = v", "a = Jᵀw", "in w, of aᵀv", "b = Jv"
        estimate = "aᵀ(a − b)\nor ½‖b − a‖²"
    v = node(axes, 1.7, 3.1, texts[0], 0.6)
    first = node(axes, 4, 2, f"Auto. Diff.\n{texts[1]}", 1.5, BLOCK, 0.7)
    a = node(axes, 6.1, 2, texts[2], 0.9)
    second = node(axes, 4, 0.8, f"Auto. Diff.\n{texts[3]}", 1.5, BLOCK, 0.7)
    b = node(axes, 6.1, 0.8, texts[4], 1.1)
    loss = node(axes, 8.4, 1.4, estimate, 1.3, LOSS, 0.7)

    edges = [(x, s), (s, matching), (matching, total), (s, first), (v, first), (first, a)]
    edges += [(a, second), (second, b), (a, loss), (b, loss), (loss, total)]
    edges += [(s, second)] if published else []
    for start, end in edges:
        arrow(axes, start, end)
    axes.text(9.65, 1.65, "· λ", ha="center")
    back(axes, [loss, a, first, s])
    if published:
        back(axes, [loss, b, second, s])
        back(axes, [second, a], SECONDARY)
        back(axes, [a, first, s], SECONDARY, 0.22)
    else:
        back(axes, [loss, b, second, a])


def main(path: str | Path) -> None:
    figure, axes = style.panels(2, 1, 5.0)
    draw(axes[0, 0], published=True)
    draw(axes[1, 0], published=False)
    look = {"forward": style.BLACK, "primary component": PRIMARY, "secondary": SECONDARY}
    handles = [axes[0, 0].plot([], [], color=c, lw=1, label=text)[0] for text, c in look.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*(sys.argv[1:] or [Path(__file__).with_suffix(".svg")]))
