"""Draw the figures of the pages again from the stored runs: python benchmarks/figures.py [--only TEXT] [--to docs/images]

Each is a figure of a report of the lab. Those of single benchmarks (MPC in the simulator, cart-poles that differ, the page of
``diagnose``) are drawn by these.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sb3_dpi.compare.__main__ import main as compare

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Report:
    """A report, and which of its figures are on the pages."""

    folders: tuple[str, ...]
    figures: dict[str, str]
    """From figure to image"""
    options: tuple[str, ...] = ()


DPI = ("dpi/defaults", "dpi/zoo_entries", "baselines")
ALL = ("dpi/light", "aggrevated_oc/zoo_entries", "mdgps/zoo_entries", "dual_ac/zoo_entries", *DPI)
REPORTS = (
    Report(
        DPI,
        {
            "curves_Reacher-v5": "reacher_dpi",
            "curves_HalfCheetah-v5": "dpi_halfcheetah",
            "curves_Hopper-v5": "dpi_hopper",
        },
        ("--published",),
    ),
    *(Report(ALL, {"frontier_tasks": f"dpi_frontier_{steps}"}, ("--at", str(steps))) for steps in (10_000, 20_000, 50_000)),
    Report(
        ("dpi/experts",),
        {
            "curves_HalfCheetah-v5": "dpi_experts_halfcheetah",
            "curves_InvertedDoublePendulum-v5": "dpi_experts_inverteddoublependulum",
        },
    ),
    Report(("dpi/experts_swimmer",), {"curves_Swimmer-v5": "dpi_experts_swimmer"}),
    Report(("dpi/parts",), {"iqm": "dpi_parts"}),
    Report(("mdgps/zoo_entries", "baselines"), {"curves_Reacher-v5": "reacher"}),
    Report(("aggrevated_oc/zoo_entries", "baselines"), {"curves_Swimmer-v5": "swimmer"}),
    Report(
        ("aggrevated_oc/trust_region",),
        {"curves_HalfCheetah-v5": "trust_region_halfcheetah", "curves_Pendulum-v1": "trust_region_pendulum"},
    ),
    Report(("dual_ac/ablation",), {"iqm": "dual_ac_ablation"}),
    Report(("dual_ac/strength",), {"iqm": "dual_ac_strength"}),
    Report(("dual_ac/game",), {"iqm": "dual_ac_game"}),
)


def draw(report: Report, only: str, to: Path) -> None:
    """Make a report and keep its figures."""
    wanted = {figure: image for figure, image in report.figures.items() if image.startswith(only)}
    if not wanted:
        return
    with TemporaryDirectory() as folder:
        outs = [str(RESULTS / name) for name in report.folders]
        status = compare(["report", "--out", *outs, "--to", folder, *report.options])
        if status:
            raise SystemExit(status)
        for figure, image in wanted.items():
            shutil.copyfile(Path(folder) / "figures" / f"{figure}.png", to / f"{image}.png")
            print(f"Drew {image}.png", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="images whose names begin so")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images", help="default: docs/images")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for report in REPORTS:
        draw(report, args.only, args.to)


if __name__ == "__main__":
    main()
