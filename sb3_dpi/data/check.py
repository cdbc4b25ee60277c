"""What is wrong with logged data, in words."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dpi.common.action_units import flat_bounds
from sb3_dpi.data.episodes import DataError, Episode, Episodes, Finding, merged
from sb3_dpi.data.order import order

ROUNDING = 1e-4
"""By how much actions may be beyond their bounds, in units of the range: files keep few digits."""
SAME_LENGTH = 5
"""Episodes of one and the same length that end in a termination look like a time limit, where none is known."""
LIMITED = "what a limit ends is truncated, not terminated, or the value of its states is lost"


def check(
    episodes: Episodes,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Box | None = None,
    time_limit: int | None = None,
) -> tuple[Finding, ...]:
    """
    Look for what would spoil learning.

    :param episodes: logged data
    :param observation_space: of the environment to learn in; None for that of the data
    :param action_space: likewise
    :param time_limit: likewise, the steps after which it ends an episode
    :return: errors first, then notes
    """
    seen, acted = observation_space or episodes.observation_space, action_space or episodes.action_space
    limit = time_limit or episodes.time_limit
    found = [*episodes.notes, *_numbers(episodes), *_shapes(episodes, seen, acted), *_ends(episodes, limit)]
    if not any(finding.is_error for finding in found):
        found += [*_units(episodes, acted), *_range(episodes, seen), *order(episodes)]
    return tuple(sorted(merged(found), key=lambda finding: not finding.is_error))


def refuse(findings: tuple[Finding, ...], source: str) -> None:
    """
    Let errors stop.

    :param findings: of ``check``
    :param source: whose they are
    :raises DataError: if there is an error among them
    """
    errors = [finding.text for finding in findings if finding.is_error]
    if errors:
        raise DataError(f"{source} cannot be learned from: " + "; ".join(errors))


def describe(episodes: Episodes) -> str:
    """
    Say what there is, in a line.

    :param episodes: logged data
    :return: numbers of episodes and steps, returns, and how episodes ended
    """
    ended = [(bool(each.terminated[-1]), bool(each.truncated[-1])) for each in episodes.episodes]
    died, cut = sum(died for died, _ in ended), sum(cut and not died for died, cut in ended)
    low, mean, high = (float(of(episodes.returns)) for of in (np.min, np.mean, np.max))
    return (
        f"{episodes.source}: {len(episodes)} episodes, {episodes.n_steps} steps, returns {low:.6g} to {high:.6g} (mean "
        f"{mean:.6g}); {died} terminated, {cut} reached a time limit, {len(ended) - died - cut} were left"
    )


def _arrays(episode: Episode) -> Iterator[tuple[str, np.ndarray]]:
    seen = episode.observations
    yield from (
        ((f"observations[{key!r}]", array) for key, array in seen.items())
        if isinstance(seen, dict)
        else (("observations", seen),)
    )
    yield from (("actions", episode.actions), ("rewards", episode.rewards))


def _numbers(episodes: Episodes) -> Iterator[Finding]:
    bad: dict[str, list[tuple[int, int]]] = {}
    for number, episode in enumerate(episodes.episodes):
        for name, array in _arrays(episode):
            rows = np.flatnonzero(~np.isfinite(np.asarray(array, np.float64).reshape(len(array), -1)).all(1))
            bad.setdefault(name, []).extend((number, int(row)) for row in rows)
    for name, places in bad.items():
        if places:
            number, step = places[0]
            where = f"episode {number}, step {step}"
            if origin := episodes.episodes[number].place(step):
                where += f" ({origin})"
            text = f"{name} are not finite (NaN or infinite) in {len(places)} rows, first in {where}"
            yield Finding(f"{text}: leave these episodes out, or repair what logged them", True)


def _shapes(episodes: Episodes, seen: spaces.Space[Any] | None, acted: spaces.Box | None) -> Iterator[Finding]:
    first = episodes.episodes[0]
    parts = seen.spaces if isinstance(seen, spaces.Dict) else {"": seen}
    given = first.observations if isinstance(first.observations, dict) else {"": first.observations}
    if set(given) - set(parts) or set(parts) - set(given):
        yield Finding(f"Observations have the parts {sorted(given)}, those of the environment {sorted(parts)}", True)
        return
    for key, space in parts.items():
        what = f"Observations {key!r}" if key else "Observations"
        if space is not None and given[key].shape[1:] != space.shape:
            yield Finding(f"{what} have shape {given[key].shape[1:]}, those of the environment {space.shape}", True)
    if acted is not None and first.actions.shape[1] != int(np.prod(acted.shape)):
        yield Finding(f"Actions have {first.actions.shape[1]} numbers, those of the environment {acted.shape}", True)
    shapes = {tuple((name, array.shape[1:]) for name, array in _arrays(each)) for each in episodes.episodes}
    if len(shapes) > 1:
        yield Finding("Episodes differ in the shapes of observations or actions: they are not of one task", True)


def _ends(episodes: Episodes, limit: int | None) -> Iterator[Finding]:
    inside = [i for i, each in enumerate(episodes.episodes) if (each.terminated | each.truncated)[:-1].any()]
    if inside:
        text = f"{len(inside)} episodes go on after a step that ended them, first episode {inside[0]}"
        yield Finding(f"{text}: cut them there, one episode each", True)
    both = sum(bool((each.terminated & each.truncated).any()) for each in episodes.episodes)
    if both:
        yield Finding(f"{both} episodes are marked as terminated and truncated: they count as terminated", False)
    died = [len(each) for each in episodes.episodes if each.terminated[-1]]
    cut = [len(each) for each in episodes.episodes if each.truncated[-1] and not each.terminated[-1]]
    if limit is None:
        yield from _same_length(died, max(map(len, episodes.episodes)))
    else:
        yield from _against_limit(died, cut, limit)
    left = sum(not (each.terminated[-1] or each.truncated[-1]) for each in episodes.episodes)
    if left:
        yield Finding(f"{left} episodes end without a mark: they count as left before their end", False)


def _same_length(died: list[int], longest: int) -> Iterator[Finding]:
    if len(died) >= SAME_LENGTH and died.count(longest) == len(died):
        text = f"All {len(died)} terminated episodes have the same length of {longest} steps, as a time limit leaves them"
        yield Finding(f"{text}: {LIMITED}", True)


def _against_limit(died: list[int], cut: list[int], limit: int) -> Iterator[Finding]:
    """Lengths of the episodes that terminated, and of those that were truncated, beside the known limit."""
    at_limit = died.count(limit)
    if at_limit and at_limit == len(died):
        text = f"All terminated episodes ({at_limit}) have the length of the environment's time limit of {limit} steps"
        yield Finding(f"{text}: {LIMITED}", True)
    elif at_limit:
        text = (
            f"{at_limit} of {len(died)} terminated episodes have the length of the environment's time limit of {limit} steps"
        )
        yield Finding(f"{text}: {LIMITED}", False)
    beyond = sum(length > limit for length in (*died, *cut))
    if beyond:
        yield Finding(f"{beyond} episodes are longer than the environment's time limit of {limit} steps", False)
    if not died and len({length for length in cut if length < limit}) > 1:
        text = f"No episode terminated, and {sum(length < limit for length in cut)} were truncated before the environment's "
        text += f"time limit of {limit} steps, at different lengths"
        yield Finding(f"{text}: unless they were left early, terminated and truncated are exchanged", False)


def _units(episodes: Episodes, acted: spaces.Box | None) -> Iterator[Finding]:
    actions = np.concatenate([each.actions for each in episodes.episodes])
    still = np.flatnonzero(np.ptp(actions, axis=0) == 0.0)
    if len(still):
        yield Finding(f"Actions never change in {_entries(still)}: nothing can be learned of what they do", False)
    if acted is None:
        yield Finding("The bounds of the actions are not known: give the environment (--env ID) to check units", False)
        return
    low, high = flat_bounds(acted)
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        return
    margin = ROUNDING * (high - low)
    beyond = np.flatnonzero(((actions < low - margin) | (actions > high + margin)).any(0))
    if len(beyond):
        i = int(beyond[0])
        share = float(((actions < low - margin) | (actions > high + margin)).any(1).mean())
        text = f"{share:.0%} of the actions are beyond their bounds, in {_entries(beyond)}"
        text += f" (from {actions[:, i].min():.4g} to {actions[:, i].max():.4g}, bounds {low[i]:.4g} to {high[i]:.4g})"
        yield Finding(f"{text}: are they in other units, or from before they were clipped? Log what was executed", True)
        return
    unit = (np.abs(actions) <= 1.0 + ROUNDING).all() and np.abs(actions).max() > 0.98
    if unit and (np.minimum(np.abs(low), np.abs(high)) > 1.5).any():
        text = "No action exceeds 1 in size though the bounds do: if they are in units of the bounds, say so with"
        yield Finding(f"{text} --actions-in bounds (read(..., actions_in='bounds'))", False)
    if ((high - low) > 1e3 * np.maximum(np.ptp(actions, axis=0), 1e-12)).any():
        yield Finding("Actions fill less than a thousandth of their range: are they in other units?", False)


def _range(episodes: Episodes, seen: spaces.Space[Any] | None) -> Iterator[Finding]:
    parts = seen.spaces if isinstance(seen, spaces.Dict) else {"": seen}
    for key, space in parts.items():
        if not isinstance(space, spaces.Box):
            continue
        array = np.concatenate([_of(each.observations, key) for each in episodes.episodes]).reshape(-1, *space.shape)
        slack = 1e-5 * np.maximum(np.abs(array).max(0), 1.0)
        beyond = ((array < space.low - slack) | (array > space.high + slack)).reshape(len(array), -1)
        what = f"Observations {key!r}" if key else "Observations"
        if beyond.any():
            text = f"{what} are beyond the bounds of their space in {_entries(np.flatnonzero(beyond.any(0)))}"
            yield Finding(f"{text}: are they normalised, in other units or in another order?", True)
        still = np.flatnonzero(np.ptp(array.reshape(len(array), -1), axis=0) == 0.0)
        if len(still):
            yield Finding(f"{what} never change in {_entries(still)}", False)


def _of(observations: Any, key: str) -> np.ndarray:
    array: np.ndarray = observations[key] if key else observations
    return array


def _entries(numbers: np.ndarray) -> str:
    shown = ", ".join(map(str, numbers[:6].tolist())) + (", ..." if len(numbers) > 6 else "")
    return f"entries {shown}" if len(numbers) > 1 else f"entry {shown}"
