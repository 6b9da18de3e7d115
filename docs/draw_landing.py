"""Draws docs/images/landing.png from the saved results of `python -m experiments.steps_to_adamw`.

python docs/draw_landing.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.curves import mean_curve  # noqa: E402
from experiments.steps_to_adamw import OPTIMIZERS, Plan, best  # noqa: E402
from trainer.records.charts import Curve, draw_chart  # noqa: E402

STYLES = {"adamw": ("#3b6fb6", 4.0), "optax-muon": ("#e39a3b", 7.0), "muon": ("#d1495b", 3.5)}


def main() -> None:
    plan, curves = Plan().large, []
    for optimizer, (colour, width) in STYLES.items():
        mean = mean_curve(list(best(plan, optimizer).values()))
        points = {float(step): loss for step, loss in mean.items()}
        curves.append(Curve(points, colour, OPTIMIZERS[optimizer], width))
    draw_chart(
        ROOT / "docs" / "images" / "landing.png",
        curves,
        title="Muon reaches AdamW's loss in fewer steps",
        subtitle="language model of 0.87 M parameters, 4,096 bytes a step, mean of three seeds",
        x="step",
        y="held-out loss (nats per byte)",
        y_range=(1.0, 2.2),
    )


if __name__ == "__main__":
    main()
