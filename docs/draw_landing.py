"""Draws docs/images/landing.png from the saved results of `python -m experiments.steps_to_adamw`.

python docs/draw_landing.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.curves import mean_curve  # noqa: E402
from experiments.steps_to_adamw import Plan, best, with_its_defaults  # noqa: E402
from trainer.records.charts import Curve, draw_chart  # noqa: E402


def main() -> None:
    plan = Plan(seeds=(0,)).large
    shown = [
        ("AdamW", best(plan, "adamw"), "#3b6fb6", 4.0),
        ("optax.contrib.muon", best(plan, "optax-muon"), "#e39a3b", 4.0),
        ("muon_jax.muon", with_its_defaults(plan), "#d1495b", 4.0),
    ]
    curves = []
    for name, runs, colour, width in shown:
        mean = mean_curve(list(runs.values()))
        points = {float(step): loss for step, loss in mean.items()}
        curves.append(Curve(points, colour, name, width))
    draw_chart(
        ROOT / "docs" / "images" / "landing.png",
        curves,
        title="Muon reaches AdamW's loss in fewer steps",
        subtitle="language model of 0.87 M parameters, 4,096 bytes a step, seed 0",
        x="step",
        y="held-out loss (nats per byte)",
        y_range=(1.0, 2.2),
    )


if __name__ == "__main__":
    main()
