"""Bugs of other limiters (with their issue numbers), each as a test: limits exceeded, and limits lost.

Each test names its source. test_field_bugs_queueing.py has the bugs about waiting and retrying, and the list of those
that cannot occur here.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.support.flow import Flow, answered
from tests.support.sessions import Sessions, sessions
from tests.support.sql import Queue

WINDOW_S = 1.0


@pytest.fixture
def several(installed: str) -> Iterator[Sessions]:
    with sessions(installed) as opened:
        yield opened


def hammer(several: Sessions, workers: int, claims: int) -> list[Queue]:
    """Lets workers, each on its own connection, claim as fast as they can and ignore all retry times."""
    queues = [several.queue() for _ in range(workers)]

    def claim(queue: Queue) -> None:
        for _ in range(claims):
            queue.claim(10, ["m"])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(claim, queues))
    return queues


def worst_window(queue: Queue, what: str, span_s: float) -> int:
    """The most that was granted in any sliding window, from the attempt log."""
    return int(
        queue.value(
            f"""select coalesce(max(total), 0) from (
                    select sum({what}) over (order by a.granted_at
                                             range between make_interval(secs => %s) preceding and current row) as total
                      from llmqueue.attempt a) x""",
            span_s - 1e-6,
        )
    )


def shrink_window(queue: Queue) -> None:
    """So that windows turn within the test; there is no guard in it."""
    queue.rows("update llmqueue.limiter set window_s = %s, guard_s = 0", WINDOW_S)


def test_litellm_18730_parallel_calls_do_not_pass_a_token_cap_together(several: Sessions) -> None:
    """LiteLLM #18730 (#10555, #3788, #5783; Envoy AI Gateway #680; Membrane #3210): 663 tokens against a cap of 100.

    Five calls at once each saw the budget before the others had taken theirs.
    """
    queue = several.queue()
    shrink_window(queue)
    queue.rows("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('m', 60000, 100, 20)")
    queue.add(500, prompt="p" * 40)

    hammer(several, 5, 150)

    assert 0 < worst_window(queue, "a.tokens", WINDOW_S) <= 100


def test_litellm_27001_a_prompt_of_nothing_and_params_of_nonsense_are_charged_too(queue: Queue) -> None:
    """LiteLLM #27001, in review: what could not be estimated went past the limit uncounted."""
    queue.model("m", 60000, tpm=600, token_mode="sum")
    queue.add(100, prompt="", params='["nonsense", {"max_tokens": {}}]')

    flow = Flow(queue)
    flow.run(60)

    assert min(grant.tokens or 0 for _, grant in flow.grants) == 8 + 150
    assert len(flow.grants) <= 600 // 158


def test_litellm_35422_a_model_that_is_limited_by_tokens_alone_is_limited(queue: Queue) -> None:
    """LiteLLM PR #35422: with a limit on tokens and none on calls, the models served 156 and 213 % of it."""
    queue.model("m", 6_000_000, tpm=60000, token_mode="input")
    queue.add(400, prompt="p" * 1568)
    flow = Flow(queue, lambda _: 1.0, settle=lambda grant: answered(grant, None, None))

    flow.run(90)

    assert 55000 <= worst_window(queue, "a.tokens", 60) <= 60000


def test_litellm_40291_every_worker_reads_the_same_count(queue: Queue) -> None:
    """LiteLLM #40291, #27736, #2730, #4148: each process counted for itself: a limit of 10 on three pods gave 30."""
    queue.model("m", 10)
    queue.add(100)
    fleet = [queue.register() for _ in range(3)]

    taken = 0
    for n in range(120):
        taken += len(queue.claim(10, worker=fleet[n % 3]).grants)
        queue.advance(0.25)

    assert taken <= 10


def test_litellm_27736_a_check_that_fails_lets_nothing_pass(conn: psycopg.Connection[Any]) -> None:
    """LiteLLM #27736: the check was skipped when it raised. Here a claim that raises grants and charges nothing."""
    queue = Queue(conn)
    queue.model("m", 600)
    queue.add(10)
    queue.rows("alter table llmqueue.ledger_grant add constraint broken check (calls < 0) not valid")

    with pytest.raises(psycopg.DatabaseError):
        queue.claim(5)

    assert queue.values("select count(*) from llmqueue.attempt") == [0]
    assert queue.values("select distinct status from tasks") == ["unsolved"]


@pytest.mark.parametrize("order", ['"max_tokens": 1, "max_completion_tokens": 10000', '"max_completion_tokens": 10000'])
def test_litellm_37001_the_larger_of_two_maxima_is_not_overlooked(queue: Queue, order: str) -> None:
    """LiteLLM #37001, #34223: max_tokens=1 beside max_completion_tokens=10000 reserved 2 tokens."""
    queue.model("m", tpm=60000, token_mode="sum")
    queue.add(prompt="", params=f"{{{order}}}")

    assert queue.claim(1).only.tokens == 8 + 10000


def test_litellm_19301_a_task_is_taken_once_by_many_workers_at_a_time(several: Sessions) -> None:
    """LiteLLM #19301, #21324: the scheduler's pop was not atomic, and two workers made the same call."""
    queue = several.queue()
    queue.model("m", 6_000_000)
    queue.add(600)

    hammer(several, 6, 20)

    assert queue.value("select count(*) from llmqueue.attempt") == 600
    assert queue.value("select count(distinct task_id) from llmqueue.attempt") == 600


def test_envoy_2394_an_answer_that_was_longer_than_expected_is_counted_before_the_next_call(queue: Queue) -> None:
    """Envoy AI Gateway #2394: a stream may finish far over its budget. With `actual` it may here; then others wait."""
    queue.model("m", 60000, tpm=10000, token_mode="actual", max_output=100)
    queue.add(10)
    queue.settle(answered(queue.claim(1).only, 50, 30000))
    queue.advance(30)

    claimed = queue.claim(10)

    assert (claimed.grants, claimed.reasons) == ([], {"m": "tpm"})


def test_bifrost_a_window_that_has_just_expired_lets_no_burst_pass(queue: Queue) -> None:
    """Bifrost's ratelimit_reserve.go: once the window had expired the check was skipped until a worker reset it."""
    queue.model("m", 60)
    queue.add(500)
    flow = Flow(queue)
    flow.run(60)
    for _ in range(20):
        for worker in (queue.worker, queue.register()):
            queue.claim(100, worker=worker)
        queue.advance(0.05)

    assert worst_window(queue, "1", 60) <= 60


def test_pyratelimiter_248_what_is_read_and_written_is_under_one_lock(several: Sessions) -> None:
    """PyrateLimiter #248 (#250 locks the table), queue-jobs-worker #16, graphile-worker-rate-limiter #9: on Postgres.

    SELECT, then INSERT: the limit was passed by whoever came in between.
    """
    queue = several.queue()
    shrink_window(queue)
    queue.model("m", 40)
    queue.add(1000)

    hammer(several, 6, 100)

    assert 0 < worst_window(queue, "1", WINDOW_S) <= 40


def test_oban_64201_what_counts_is_when_a_call_starts_and_a_retry_is_a_call(queue: Queue) -> None:
    """elixirforum 64201: 90 jobs in 10 s kept, and the API's limit hit all the same: retries ran beside them."""
    queue.model("m", 540, burst_windows='{"10": 0.1667}')
    queue.add(400)
    flow = Flow(
        queue,
        lambda grant: 0.2 + grant.fence % 9,
        settle=lambda grant: {
            "verb": "retry", "fence": grant.fence, "task_id": str(grant.id), "delay_s": 0.5, "counts": True,
            "error_class": "timeout", "error": "none", "sent_after_s": 0.1, "latency_s": 1.0,
        },
        maintenance=["promote"],
    )  # fmt: skip
    flow.run(60)

    assert queue.value("select count(*) from llmqueue.attempt where attempt_no > 1") > 50
    assert 70 <= worst_window(queue, "1", 10) <= 90


def test_elixirforum_53388_one_limited_account_blocks_nobody_behind_it(queue: Queue) -> None:
    """elixirforum 53388: the jobs of one rate-limited account stood at the head and all others waited."""
    queue.model("full", 1)
    queue.model("free", 6000)
    queue.add(50, model="full", user_id="loud", priority=50)
    behind = queue.add(5, model="free", user_id="quiet")

    queue.claim(10)
    queue.advance(1)

    assert {row["id"] for row in queue.rows("select id from tasks where status = 'running'")} >= set(behind)


def test_litellm_24677_tokens_come_back_when_their_minute_is_over(queue: Queue) -> None:
    """LiteLLM #24677, #18953: calls and tokens shared one window key; the tokens were not reset: 429 for minutes."""
    queue.model("m", 600, tpm=6000, token_mode="input")
    queue.add(200, prompt="p" * 768)
    flow = Flow(queue, lambda _: 1.0, settle=lambda grant: answered(grant, None, None))

    flow.run(61)
    first = sum(grant.tokens or 0 for _, grant in flow.grants)
    flow.run(365)

    assert first >= 5600
    assert sum(grant.tokens or 0 for at_s, grant in flow.grants if at_s > 61) >= 0.95 * 5 * 6000


@pytest.mark.parametrize(
    "columns", [{"max_concurrency": 2, "hot_share": 0}, {"tpm": 60, "token_mode": "input"}, {"rpd": 2}]
)
def test_litellm_39309_a_claim_that_is_refused_costs_nothing(queue: Queue, columns: dict[str, Any]) -> None:
    """LiteLLM #39309: a call refused for its concurrency used up a call of the minute, and so did refused ones."""
    queue.model("m", 60000, **columns)
    queue.add(100, prompt="p" * 80)
    queue.claim(10)
    before = queue.value("select calls from llmqueue_internal.count_60s('m', %s)", queue.now)

    for _ in range(50):
        assert queue.claim(10).grants == []

    assert queue.value("select calls from llmqueue_internal.count_60s('m', %s)", queue.now) == before


def test_litellm_lit_3408_a_default_reservation_fits_into_a_small_limit(queue: Queue) -> None:
    """LiteLLM LIT-3408 (#28805, #29191, #29193): 1,025 reserved by default against 1,000: no call was ever let in."""
    queue.model("m", 600, tpm=1000)
    queue.add(20, prompt="p")
    flow = Flow(queue, lambda _: 1.0, settle=lambda grant: answered(grant, None, None))

    flow.run(130)

    assert len(flow.grants) >= 6


def test_litellm_27509_a_call_without_a_maximum_does_not_take_all_there_is(queue: Queue) -> None:
    """LiteLLM #27509, #38647, #35524: without max_tokens all headroom was reserved, or nothing was."""
    queue.model("m", 60000, tpd=1000, token_mode="actual")
    queue.add(10, prompt="p")

    grants = queue.claim(10).grants

    assert len(grants) == 3
    queue.settle(*[answered(grant, 9, 20) for grant in grants])
    assert len(queue.claim(10).grants) == 3, "what was not used is there again"


@pytest.mark.parametrize("between_s", [0.001, 0.0333, 0.4])
def test_portkey_being_refused_drains_nothing_and_loses_no_fraction(queue: Queue, between_s: float) -> None:
    """Portkey's Lua: a denied request saved tokens = 0 and dropped the fraction; throttled-py floors whole seconds."""
    queue.model("m", 600)
    queue.add(200)
    while len(queue.claim(1).grants) == 1:
        pass
    taken = 0
    for _ in range(int(8 / between_s) if between_s > 0.01 else 2000):
        queue.advance(between_s)
        taken += len(queue.claim(1).grants)

    seconds = 8 if between_s > 0.01 else 2
    assert taken >= min(10 * seconds - 1, seconds / between_s - 1)


def test_llm_proxy_40_a_refund_takes_nothing_from_others(queue: Queue) -> None:
    """Instawork/llm-proxy #40: a refund landed in the current minute, below 0, and gave leave to call."""
    queue.model("m", 10)
    queue.add(100)
    old = queue.claim(2).grants
    queue.advance(61)
    flow = Flow(queue)
    flow.run(55)
    taken = len(flow.grants)

    queue.settle(*[{"verb": "release", "fence": g.fence, "task_id": str(g.id), "error_class": "late"} for g in old])

    assert taken == 10
    assert queue.claim(10).grants == []
    assert queue.value("select min(calls) from llmqueue.ledger_grant where calls <> 0") > 0


def test_llm_proxy_40_what_a_lost_client_held_is_free_after_its_window(queue: Queue) -> None:
    """Instawork/llm-proxy #40: a client that disconnected left its reservation behind for good."""
    queue.model("m", 60000, tpm=1000, token_mode="input")
    queue.add(2, prompt="p" * 3800)
    grant = queue.claim(1).only
    assert queue.claim(1).reasons == {"m": "tpm"}

    queue.lose(grant)
    queue.advance(62)

    assert len(queue.claim(1).grants) == 1


def test_pyratelimiter_a_charge_of_billions_is_one_row(queue: Queue) -> None:
    """PyrateLimiter on Postgres: `weight smallint` (40,000 tokens are out of range), and one row per token."""
    queue.model("m", 600, tpm=9_000_000_000_000, token_mode="sum", max_output=2_000_000_000)
    queue.add(5, prompt="p" * 200_000)

    assert sum(grant.tokens or 0 for grant in queue.claim(5).grants) == 5 * 2_000_050_008
    assert queue.value("select count(*) from llmqueue.ledger_grant") == 1
