"""All limits at once against a brute-force log: calls, tokens, short windows, days and cooldowns, whatever happens.

See tests/properties/token_log.py for what the log holds and by which clock it is judged.
"""

from __future__ import annotations

from typing import Any, cast

import psycopg
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tests.properties.token_fleet import fleet
from tests.properties.token_log import Limits

NAMES = ("a", "b")
NAME = st.sampled_from(NAMES)
NTH = st.integers(0, 60)
MODES = ("input", "sum", "max", "split", "actual")
BURSTS = (None, {"10": 0.1667}, {"1": 0.05}, {"10": 0.2, "1": 0.1}, {"2.5": 1})
LIMITS = st.builds(
    Limits,
    rpm=st.sampled_from([600, 6000, 60, 10, 2, 1, 0]),
    tpm=st.sampled_from([None, 1000, 6000, 300, 100, 58]),
    token_mode=st.sampled_from(MODES),
    max_output=st.sampled_from([None, None, 1, 50, 400]),
    rpd=st.sampled_from([None, None, None, None, 40, 3]),
    tpd=st.sampled_from([None, None, None, None, 5000, 500]),
    quota_timezone=st.sampled_from(["UTC", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Apia"]),
    burst_windows=st.sampled_from(BURSTS),
    hot_share=st.sampled_from([0.0, 0.1]),
).flatmap(
    lambda limits: (
        st.sampled_from([None, 30, 500]).map(lambda most: Limits(**{**vars(limits), "output_tpm": most}))
        if limits.token_mode == "split"
        else st.just(limits)
    )
)
GAPS = st.one_of(
    st.sampled_from([0.0, 0.25, 1.0, 10.0, 30.0, 59.9, 60.0, 60.5, 60.75, 61.0, 300.0]),
    st.floats(0, 70).map(lambda s: round(s, 6)),
    st.floats(0, 2).map(lambda s: round(s, 6)),
)
# How often each happens, and with what.
STEPS = {
    "arrive": (
        3,
        NAME,
        st.sampled_from([20, 3, 1]),
        st.sampled_from([30, 1, 100, 200, 200, 3000]),
        st.sampled_from([None, None, None, 10, 1, 2000]),
        st.sampled_from([0, 0, 100, -1]),
    ),
    "run": (12, st.integers(3, 12), st.sampled_from([0.0, 0.0, 0.01, 0.3]), st.sampled_from([3, 40])),
    "claim": (6, st.sampled_from([None, ["a"], ["b"]]), st.sampled_from([3, 10, 120, 1]), st.integers(0, 2)),
    "come_back": (6, NAME),
    "wait": (4, GAPS),
    "edge": (2, st.integers(0, 260), st.integers(-1, 1)),
    "midnight": (1, NAME, st.integers(-1, 1)),
    "set_limits": (1, NAME, LIMITS),
    "release": (4, NTH),
    "complete": (6, NTH, st.sampled_from([1, 0.5, 0, 1.5, 30, None]), st.sampled_from([7, 0, 900, None])),
    "top_up": (5, NTH, st.sampled_from([1.2, 8, 1.0, 0.5])),
    "refuse": (1, NTH, st.sampled_from(["quota", "capacity"]), st.sampled_from([3.0, None, 0.0, 40.0])),
    "step_back": (1, st.one_of(st.floats(0, 1), st.floats(1.000001, 200), st.just(1.0))),
    "step_forward": (1, st.floats(0.3, 5000)),
    "guard": (1, st.sampled_from([0.5, 0.0, 1.0, 3.0, 10.0])),
    "prune": (1,),
}
STEP = st.sampled_from([verb for verb, (weight, *_) in STEPS.items() for _ in range(cast(int, weight))]).flatmap(
    lambda verb: st.tuples(st.just(verb), *STEPS[verb][1:])
)


# What a workers' poll does at the worst: it asks for all there is four times a second.
ALL_THE_TIME = [("claim", None, 120, 0), ("wait", 0.25)]
BY_TPM = Limits(rpm=60, tpm=400, token_mode="input", hot_share=0.0)
BY_USE = Limits(rpm=600, tpm=1000, token_mode="actual", max_output=20)


@settings(max_examples=max(20, settings.default.max_examples // 2))
@given(first=LIMITS, second=LIMITS, steps=st.lists(STEP, min_size=15, max_size=50))
@example(  # idle, then a burst at the end of a minute
    first=BY_TPM,
    second=Limits(rpm=60, burst_windows={"10": 0.1667, "1": 0.05}),
    steps=[
        ("arrive", "a", 120, 30, None, 0),
        ("arrive", "b", 120, 30, None, 0),
        ("wait", 59.9),
        *ALL_THE_TIME * 20,
        ("wait", 59.9),
        *ALL_THE_TIME * 20,
    ],
)
@example(  # the smallest limits
    first=Limits(rpm=1, tpm=58, token_mode="input", rpd=3, burst_windows={"1": 0.05}),
    second=Limits(rpm=0, tpm=1000, tpd=5000),
    steps=[
        ("arrive", "a", 9, 200, None, 0),  # each is charged all of tpm
        ("arrive", "b", 9, 30, None, 0),
        *[("edge", 1, off) for off in (-1, 0, 1)],
        *[("come_back", "a"), ("come_back", "b"), ("edge", 242, -1), ("come_back", "a"), ("come_back", "a")],
        *[("midnight", "a", -1), ("come_back", "a"), ("come_back", "a"), ("come_back", "a")],
    ],
)
@example(  # batches larger than every limit, and prompts larger than one of them
    first=Limits(rpm=10, tpm=100, token_mode="max", burst_windows={"2.5": 1}, tpd=500, hot_share=0.0),
    second=Limits(rpm=600, token_mode="split", tpm=300, output_tpm=30, max_output=10),
    steps=[
        ("arrive", "a", 30, 400, None, 0),
        *[("arrive", name, 40, 30, None, 0) for name in ("a", "b")],
        ("arrive", "b", 40, 3000, 2000, 100),
        *[("claim", None, 120, 2), ("wait", 61.0)] * 4,
        *[("claim", None, 1, 2), ("wait", 1.0)] * 4,
    ],
)
@example(  # a slot for any task and one for hot ones: that no hot task waits says nothing of the others
    first=Limits(),
    second=Limits(),
    steps=[*[("arrive", name, 9, 30, None, 0) for name in ("a", "b")], *[("claim", None, 1, 1), ("wait", 1.0)] * 4],
)
@example(  # what was underestimated holds up the next calls, what was overestimated makes room for them
    first=BY_USE,
    second=Limits(rpm=600, token_mode="split", tpm=1000, output_tpm=100, max_output=20),
    steps=[
        *[("arrive", name, 60, 100, None, 0) for name in ("a", "b")],
        *[step for n in range(20) for step in [*ALL_THE_TIME, ("complete", n, (0, 1.5, 30)[n % 3], 7 * n)]],
        ("come_back", "a"),
        ("come_back", "b"),
    ],
)
@example(  # low estimates: topped up, given back, and charged at once the next time
    first=BY_TPM,
    second=Limits(rpm=600, tpm=300),
    steps=[
        *[("arrive", name, 20, 100, None, 0) for name in ("a", "b")],
        *[step for n in range(12) for step in [*ALL_THE_TIME, ("top_up", n, (1.2, 8)[n % 2]), ("release", n)]],
        *[("wait", 61.0), *ALL_THE_TIME],
    ],
)
@example(  # refusals: of a call under way before, of the probe, and of a probe that is given back
    first=Limits(rpm=600),
    second=Limits(rpm=600, tpm=1000),
    steps=[
        *[("arrive", name, 40, 30, None, 0) for name in ("a", "b")],
        *ALL_THE_TIME * 3,
        *[("refuse", 0, "quota", 40.0), ("refuse", 0, "quota", 3.0), ("wait", 3.0), *ALL_THE_TIME],
        *[("come_back", "a"), *ALL_THE_TIME * 22, ("wait", 5.0), *ALL_THE_TIME],
        *[("refuse", -1, "capacity", None), *ALL_THE_TIME * 20, ("release", -1), *ALL_THE_TIME * 4],
    ],
)
def test_no_limit_is_exceeded_and_no_charge_is_lost_or_made_up(
    backlog: psycopg.Connection[Any], first: Limits, second: Limits, steps: list[tuple[Any, ...]]
) -> None:
    with fleet(backlog, {"a": first, "b": second}) as world:
        for verb, *args in steps:
            if world.grants > 150:
                break
            getattr(world, verb)(*args)
        for model in world.models.values():
            assert model.over_by_more_than_was_underestimated() == []
        event("grants", world.grants)


def test_a_prompt_of_exactly_tpm_is_sent_and_a_larger_one_is_buried_at_once_with_the_numbers(
    backlog: psycopg.Connection[Any],
) -> None:
    with fleet(backlog, {"a": Limits(rpm=60, tpm=58, token_mode="input")}) as world:
        world.arrive("a", 1, 201, None, 0)
        world.arrive("a", 2, 200, None, 0)

        claimed = world.queue.claim(10)

        (buried,) = world.queue.rows("select status, error, attempts from tasks where octet_length(prompt) = 201")
        assert buried["error"] == "exceeds_tpm: charged 59 tokens (59 of input), and a allows tpm 58"
        assert (buried["status"], buried["attempts"]) == ("failed", 0)
        assert [(grant.prompt, grant.tokens) for grant in claimed.grants] == [("x" * 200, 58)]
        assert claimed.reasons == {"a": "tpm"}
        world.wait(claimed.retry_in_s["a"] or 0)
        assert len(world.queue.claim(10).grants) == 1


def test_a_real_use_above_its_reservation_goes_over_by_just_that_and_is_made_up_for(
    backlog: psycopg.Connection[Any],
) -> None:
    with fleet(backlog, {"a": BY_USE}) as world:
        world.arrive("a", 60, 272, None, 0)  # 76 of input and 20 of output
        while len(world.models["a"].log) < 10:
            world.claim(["a"], 10, 0)
            world.wait(1)
        for _ in range(10):
            world.complete(0, 1, 96)  # 96 of input and 96 of output: twice what was reserved

        used = [entry.tokens for entry in world.models["a"].entries()]
        assert (sum(used), used) == (1920, [192] * 10)
        claimed = world.claim(["a"], 10, 0)
        assert claimed.reasons == {"a": "tpm"}
        world.wait(claimed.retry_in_s["a"] or 0)
        world.claim(["a"], 10, 0)
        in_window = sum(entry.tokens for entry in world.models["a"].trailing(world.true, 60))
        assert in_window <= 1000


def test_a_claim_that_found_nothing_of_use_is_made_again_by_the_poll_and_not_at_once(
    backlog: psycopg.Connection[Any],
) -> None:
    """Else a worker would do nothing else while the head of a pool waits for a larger model."""
    with fleet(backlog, {"a": BY_TPM}) as world:
        world.queue.rows("insert into llmqueue.pool_member (pool, model) values ('both', 'a'), ('both', 'larger')")
        world.queue.model("larger", 60, enabled=False)
        world.queue.add(400, model="both", prompt="x" * 4000)

        for slots in (1, 40):
            assert world.queue.claim(slots, ["a"]).reasons == {"a": "empty"}
        assert world.queue.values("select distinct status from tasks") == ["unsolved"]
