"""Whether the rows of logged data stand in the order of time, and actions beside what they did."""

from collections.abc import Iterator

import numpy as np

from sb3_dpi.data.episodes import Episode, Episodes, Finding
from sb3_dpi.trajopt.types import FloatArray

OTHER_ROW = 0.5
"""Of the error of a linear model of changes, what is left with another row's action where actions were written beside it."""
WORTH_A_NOTE = 1e-3
"""Of an output's variance, what its own action must leave for a note."""
CAUSED = 0.2
"""Of an action's variance, what other rows than its own tell where it acted on them. A policy's curves leave less."""
ROUGH = 0.7
"""Changes from row to row, in units of those between any two rows: nothing that moves looks like that."""
MOST_ROWS, MOST_NUMBERS, FEWEST_ROWS = 20_000, 1000, 50
"""Rows by which this is judged, numbers of an observation beyond which it is not, as of images, and rows below."""
RIDGE = 1e-6
RULE = "Row t must hold what was seen at t and what was then done"


def order(episodes: Episodes) -> Iterator[Finding]:
    """
    Look at what changes from row to row.

    :param episodes: logged data, of finite numbers
    :return: what looks as if rows or actions were elsewhere
    """
    seen = episodes.episodes[0].observations
    parts = seen.values() if isinstance(seen, dict) else (seen,)
    if sum(int(np.prod(part.shape[1:])) for part in parts) > MOST_NUMBERS:
        return
    chosen, left = list[Episode](), MOST_ROWS
    for each in episodes.episodes:
        if left <= 0:
            break
        chosen.append(each)
        left -= len(each)
    states = [_states(each) for each in chosen]
    yield from _rough(states)
    yield from _beside(states, [each.actions for each in chosen])


def _rough(states: list[FloatArray]) -> Iterator[Finding]:
    """Whether even the smoothest number jumps as if rows were drawn at random."""
    every, changes = np.concatenate(states), np.concatenate([np.diff(each, axis=0) for each in states])
    spread = every.std(0)
    moved = spread > 1e-9 * np.maximum(np.abs(every).max(0), 1e-12)
    if len(changes) < FEWEST_ROWS or not moved.any():
        return
    rough = float(np.min(np.sqrt(np.mean(changes[:, moved] ** 2, axis=0) / 2.0) / spread[moved]))
    if rough > ROUGH:
        text = f"Even the smoothest observed number changes from row to row {rough:.0%} as much as between any two rows"
        yield Finding(f"{text}: are the rows shuffled? Row t + 1 must hold what came after row t", False)


def _beside(states: list[FloatArray], actions: list[FloatArray]) -> Iterator[Finding]:
    """Whether a step's change follows from its own action, or rather from that of the next row or the one before."""
    rows = [
        (seen[:-3], seen[1:-2], seen[2:-1], done[:-2], done[1:-1], done[2:])
        for seen, done in zip(states, actions, strict=True)
        if len(done) > 2
    ]
    if not rows:
        return
    seen_before, now, seen_later, before, own, later = (
        np.concatenate(arrays)[:MOST_ROWS] for arrays in zip(*rows, strict=True)
    )
    if len(now) < 10 * (now.shape[1] + own.shape[1] + 1):
        return
    changes = seen_later - now
    with_before, with_own, with_later = (_error((now, acts), changes) for acts in (before, own, later))
    if not len(with_own) or with_own.mean() < RIDGE:  # what is left is rounding
        return
    has_later = ((with_later < OTHER_ROW * with_own) & (with_own > WORTH_A_NOTE)).any()
    has_before = ((with_before < OTHER_ROW * with_own) & (with_own > WORTH_A_NOTE)).any()
    is_late = with_later.mean() < OTHER_ROW * with_own.mean()
    if (is_late or has_later) and not _is_feedback(later, seen_later, now):
        if is_late:
            text = (
                "What happens in a step follows from the action of the next row: actions are written a row late, or the rows"
            )
            yield Finding(f"{text} are in reverse order. {RULE}", True)
        else:  # in one number alone it may be by chance
            text = "Some of what happens in a step follows rather from the action of the next row: are actions written a row"
            yield Finding(f"{text} late? Or are the rows in reverse order? {RULE}", False)
    elif has_before and not _is_feedback(before, seen_before, now, seen_later):
        text = "What happens in a step follows rather from the action of the row before: are actions written a row early?"
        yield Finding(f"{text} A delay of the actuators looks alike. {RULE}", False)


def _is_feedback(actions: FloatArray, seen: FloatArray, *others: FloatArray) -> bool:
    """Whether actions are what a policy did about its own row. They then tell what stands there, and caused nothing here."""
    alone, beside = _error((seen,), actions), _error((seen, *others), actions)
    is_told = (beside < OTHER_ROW * alone) & (alone > WORTH_A_NOTE) | (alone - beside > CAUSED)
    return not is_told.any()


def _states(episode: Episode) -> FloatArray:
    seen = episode.observations
    arrays = list(seen.values()) if isinstance(seen, dict) else [seen]
    return np.concatenate([np.asarray(a, np.float64).reshape(len(a), -1) for a in arrays], 1)


def _error(inputs: tuple[FloatArray, ...], outputs: FloatArray) -> FloatArray:
    """Share of the outputs' variance that a linear model leaves, for each of those that vary."""
    standard = _standard(np.concatenate(inputs, 1))
    targets = _standard(outputs)
    gram = standard.T @ standard / len(standard) + RIDGE * np.eye(standard.shape[1])
    left = targets - standard @ np.linalg.solve(gram, standard.T @ targets / len(standard))
    shares: FloatArray = np.mean(left**2, axis=0)
    return shares


def _standard(array: FloatArray) -> FloatArray:
    spread = array.std(0)
    moved: FloatArray = (array - array.mean(0))[:, spread > 1e-12] / spread[spread > 1e-12]
    return moved
