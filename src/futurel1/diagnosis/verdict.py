"""What the numbers of a diagnosis say, in sentences that hold no more than the numbers do."""

from __future__ import annotations

from collections.abc import Sequence

from futurel1.diagnosis.effects import Effect
from futurel1.diagnosis.imagining import Change
from futurel1.diagnosis.probes import Probe
from futurel1.diagnosis.results import DESTRUCTIVE, LABELS, points

__all__ = ["verdict_of"]

STILL = 5e-4  # a cosine distance that is printed as 0.000


def verdict_of(effects: Sequence[Effect], changes: Sequence[Change], probes: Sequence[Probe] = ()) -> tuple[str, ...]:
    """One sentence per finding: a difference counts if its 95% interval leaves out zero.

    Args:
        effects: the model's own latents, and replacements.
        changes: changes of the observed video.
        probes: of the latents, and of what they are compared with.
    """
    known = {effect.name: effect for effect in effects}
    destroyed = [known[name] for name in DESTRUCTIVE if name in known]
    found = [_need(destroyed)]
    if "swap" in known:
        content = [one for one in destroyed if one.name != "markers"]
        found.append(_swap(known["swap"], known["none"], needed=not content or any(map(_falls, content))))
    if "oracle" in known:
        found.append(_ceiling(known["oracle"], known["none"]))
    found += [_change(change) for change in changes if change.name != "recoloured"]
    by_name = {change.name: change for change in changes}
    if "recoloured" in by_name and "moved" in by_name:
        found.append(_irrelevant(by_name["recoloured"], by_name["moved"]))
    if probes:
        found.append(_read(probes))
    return tuple(filter(None, found))


def _falls(effect: Effect) -> bool:
    """Whether accuracy falls."""
    return effect.difference is not None and effect.difference.high < 0


def _need(destroyed: Sequence[Effect]) -> str:
    """Whether accuracy falls without the latents' content."""
    if not destroyed:
        return ""
    fell = [one for one in destroyed if _falls(one)]
    named = ", ".join(f"{LABELS[one.name]} {points(one.difference)}" for one in destroyed)
    if len(fell) == len(destroyed):
        return f"Answers need what the latents say: accuracy falls under every replacement, in points: {named}."
    if not fell:
        return f"Answers do not measurably need the latents: no replacement lowers accuracy, in points: {named}."
    if [one.name for one in fell] == ["markers"]:
        return (
            "Answers need something between the markers, but not what the latents say: accuracy falls only without "
            f"any, in points: {named}."
        )
    less = ", ".join(LABELS[one.name] for one in fell)
    return (
        f"Answers need the latents in part: accuracy falls under {less} and not under the others, in points: {named}."
    )


def _swap(swap: Effect, own: Effect, *, needed: bool) -> str:
    """Whether answers move to those of the other future.

    Args:
        swap: the other future.
        own: the model's own latents.
        needed: whether answers need what the model's own latents say. Otherwise a swap shows only that it reads frames.
    """
    if swap.gain is None:
        return ""
    follow = swap.gain.low > 0 and (swap.over_control is None or swap.over_control.low > 0)
    control = ""
    if swap.over_control is not None:
        share = swap.followed / swap.total - swap.over_control.value if swap.followed is not None else 0
        control = f"; with {LABELS[swap.control]} to {round(share * swap.total)} ({points(swap.over_control)} points)"
    said = f"Answers {'follow' if follow else 'do not measurably follow'} the latents"
    if follow and not needed:
        said = "The model reads the frames that it is fed, though it does not need what its own latents say"
    return (
        f"{said}: fed another future, the model gives that future's answer to {swap.followed} of {swap.total} "
        f"questions, with its own latents to {own.followed} ({points(swap.gain)} points){control}."
    )


def _ceiling(oracle: Effect, own: Effect) -> str:
    """What better imagination could give."""
    reading = (
        f"Fed the true future, {oracle.right} of {oracle.total} answers are right, with its own latents {own.right} "
        f"({points(oracle.difference)} points)"
    )
    if oracle.difference is not None and oracle.difference.low > 0:
        return f"{reading}: better imagination would help, and the rest is reading."
    return f"{reading}: better imagination alone would not measurably help."


def _change(change: Change) -> str:
    """Whether imagined frames move to the future of a changed video."""
    follow = change.gain.low > 0
    return (
        f"Imagined frames {'follow' if follow else 'do not measurably follow'} the video when it is {change.name}: "
        f"{change.nearer:.0%} are nearer to the changed video's future than to the unchanged one's, of those imagined "
        f"for the unchanged video {change.unchanged:.0%} ({points(change.gain)} points)."
    )


def _read(probes: Sequence[Probe]) -> str:
    """From what the zones of things can be read."""
    read = [f"{one.zone:.0%} from {one.name}" for one in probes if one.gain.low > 0]
    other = [one.name for one in probes if not one.gain.low > 0]
    shuffled = max(one.zone_shuffled for one in probes)
    parts = []
    if read:
        parts.append(
            f"A linear probe reads the zones of things in the future frame: {', '.join(read)} "
            f"(shuffled labels: at most {shuffled:.0%})."
        )
    if other:
        parts.append(f"Zones are read no better than with shuffled labels from {', '.join(other)}.")
    return " ".join(parts)


def _irrelevant(recoloured: Change, moved: Change) -> str:
    """How far something irrelevant moves the imagined frames."""
    if moved.distance < STILL:
        return (
            "What is asked about may be moved in the video: the imagined frames stay the same (cosine distance 0.000)."
        )
    share = recoloured.distance / moved.distance
    return (
        f"An irrelevant change of colour moves imagined frames {share:.2f} times as far as moving what is asked about "
        f"(cosine distance {recoloured.distance:.3f} and {moved.distance:.3f}; the true frames "
        f"{recoloured.true_distance:.3f} and {moved.true_distance:.3f})."
    )
