"""What each picture is, what good looks like, and what to change when it is not."""

from dataclasses import dataclass

from sb3_dpi.diagnose import pictures
from sb3_dpi.diagnose.measure import Findings
from sb3_dpi.diagnose.pictures import Draw


@dataclass(frozen=True)
class Words:
    """Of one picture."""

    table: str
    """whose name it has"""
    title: str
    draw: Draw
    good: str
    """what good looks like"""
    change: str
    """what to change when it is not, of an ensemble or where there is one kind only"""
    change_local: str = ""
    """likewise of local models"""


WORDS = (
    Words(
        "prediction",
        "Error of the model",
        pictures.draw_prediction,
        "Good: all marks left of the dashed line, where predicting the mean change is as good, and far left for one step.",
        "Otherwise train longer, or set world_model={'width': 256} or more gradient_steps; a number that stays on the line "
        "may be noise, or need something that the observation lacks.",
        "Otherwise take more samples_per_condition or a higher replay, a shorter horizon, or another prior in dynamics; a "
        "number that stays on the line may be noise, or need something that the observation lacks.",
    ),
    Words(
        "calibration",
        "Does the model know where it is wrong?",
        pictures.draw_calibration,
        "Good: curves that rise along the dashed line.",
        "Curves far above it: the members agree on what is wrong, so keep on_policy_correction on and rollout_length short, "
        "and explore more; far below: the members need more gradient_steps.",
        "Curves far above it: the fitted noise is too small for what is not linear, so shorten the horizon or lower kl_step "
        "(trust_region); far below: take more samples.",
    ),
    Words(
        "one_step",
        "Rewards and ends, a step ahead",
        pictures.draw_one_step,
        "Good: points on the dashed line, and ends predicted near 1 where they came and near 0 where not.",
        "Otherwise give what you know as world_model={'cost_fn': ..., 'termination_fn': ...}, or let the observation hold "
        "what the reward depends on.",
        "Otherwise give the cost that you know as cost=..., set cost={'local_window': 3}, or let the observation hold what "
        "the reward depends on.",
    ),
    Words(
        "returns",
        "Imagined and real returns from the same starts",
        pictures.draw_returns,
        "Good: points along the dashed line, their order above all.",
        "Points above it: the policy has learned to please the model, so shorten rollout_length and imagination's horizon, "
        "and keep on_policy_correction on; no order at all: look at the errors of state and reward first.",
        "Points off it: the plan is longer than its model is right, so shorten the horizon; no order at all: look at the "
        "errors of state and reward first.",
    ),
    Words(
        "critic",
        "Critic and return",
        pictures.draw_critic,
        "Good: points along the dashed line; an even shift does little harm, a wrong order does.",
        "Critic above the returns: it overrates what was seldom tried, so raise critic={'real_fraction': ...} or lower tau; "
        "no order: more updates of the critic (policy_delay, n_critic_updates), or a gamma that fits the length of episodes.",
    ),
    Words(
        "ahead",
        "How far the expert is ahead of the policy",
        pictures.draw_ahead,
        "Good while it learns: both above zero, and the real one a good part of the model's; near zero at the end.",
        "Ahead in the model alone: the model flatters the expert, see its errors. Ahead in neither: the policy has caught "
        "up, or learning_rate or the expert's trust region is too small to tell.",
        "Ahead in the model alone: lower kl_step (trust_region), shorten the horizon or take more samples. Ahead in "
        "neither: the policy has caught up, or the trust region is too small.",
    ),
    Words(
        "kl",
        "How far the expert is from the policy",
        pictures.draw_kl,
        "Good: even along time, and about what the trust region allows.",
        "Peaks are moments at which the policy is to change at once; much above target_kl: lower learning_rate; near zero "
        "all along though the return is bad: raise it.",
        "Peaks are moments at which the policy is to change at once; all of it at the end: lower gamma or the horizon; near "
        "zero though the return is bad: raise kl_step (trust_region).",
    ),
    Words(
        "conditions",
        "Local models, condition by condition",
        pictures.draw_conditions,
        "Good: all conditions alike and below the dashed line.",
        "A single one far above: its trajectories came through a contact or an end; more samples_per_condition, or a "
        "shorter horizon, help there.",
    ),
    Words(
        "actions",
        "Are actions at their bounds?",
        pictures.draw_actions,
        "Good: most between the bounds; where the task is one of full force (a swing up, a race) dark edges are right.",
        "Dark edges where the task is to balance or to reach: the policy switches to and fro, so charge actions in the "
        "reward, lower learning_rate, or widen the bounds.",
    ),
)


@dataclass(frozen=True)
class Chapter:
    """One picture of a page."""

    name: str
    title: str
    light: bytes
    dark: bytes
    words: str


def chapters(findings: Findings) -> list[Chapter]:
    """
    Draw what was found.

    :param findings: of ``measure``
    :return: in the order of the page; what makes no sense for this model is left out
    """
    is_local, found = findings.subject.has_local_models, []
    for words in WORDS:
        if words.table in findings.tables and len(findings.tables[words.table]):
            change = words.change_local if is_local and words.change_local else words.change
            both = pictures.both(words.draw, findings.tables)
            found.append(Chapter(words.table, words.title, *both, f"{words.good} {change}"))
    return found


def missing(findings: Findings) -> list[tuple[str, str]]:
    """
    Say what is not there.

    :param findings: of ``measure``
    :return: titles, and why
    """
    return [(words.title, findings.notes[words.table]) for words in WORDS if words.table in findings.notes]


def left_out(findings: Findings) -> list[tuple[str, str]]:
    """
    Say what a page lacks, its film strip and the pictures of a model included.

    :param findings: of ``diagnose``, whose page was written
    :return: what it is, and why
    """
    others = {"model": "Model and expert", "film": "Film strip"}
    return [*((title, findings.notes[name]) for name, title in others.items() if name in findings.notes), *missing(findings)]
