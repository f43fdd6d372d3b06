"""The simulated Models Backend over HTTP, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from llmqueue.fake_backend import (
    CannotListen,
    FaultRates,
    RunningBackend,
    SimulatorConfig,
    expected_answer,
    read_calls,
    running,
    worst_window,
)

pytestmark = pytest.mark.anyio

INSTANT = SimulatorConfig(models=("m",), instant=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving(
    config: SimulatorConfig = INSTANT,
) -> AsyncIterator[tuple[RunningBackend, aiohttp.ClientSession]]:
    async with running(config) as backend, aiohttp.ClientSession(backend.url) as client:
        yield backend, client


async def until_logged(backend: RunningBackend, count: int, finished: bool = False) -> None:
    """Returns once that many calls are in the log; the test's own time limit ends a wait in vain."""
    while sum(not finished or call.finished_at is not None for call in backend.log.calls()) < count:
        await asyncio.sleep(0)


def single(prompt: object, model: str = "m") -> dict[str, object]:
    return {"model": model, "prompt": prompt}


@pytest.mark.parametrize("prompt", ["héllo", "", ["chat", {"b": 1, "a": None}], {"nul": "\0"}, 5])
async def test_single_answers_any_prompt_with_the_expected_answer(prompt: object):
    async with serving() as (backend, client):
        async with client.post("/single", json=single(prompt), headers={"Idempotency-Key": "7:0"}) as reply:
            body = await reply.json()

        assert reply.status == 200
        assert body["answer"] == expected_answer(prompt)  # type: ignore[arg-type]
        assert set(body["usage"]) == {"prompt_tokens", "completion_tokens"}
        (call,) = backend.log.calls()
        assert (call.model, call.key, call.status, call.fault) == ("m", "7:0", 200, None)


async def test_a_batch_answers_every_item_and_each_is_a_call():
    items = [{"id": str(number), "prompt": f"p{number}"} for number in range(10)]
    async with serving() as (backend, client):
        async with client.post("/batch", json={"model": "m", "items": items}) as reply:
            results = (await reply.json())["results"]

        assert [result["answer"] for result in results] == [expected_answer(f"p{n}") for n in range(10)]
        assert [call.key for call in backend.log.calls()] == [str(number) for number in range(10)]


async def test_an_error_in_a_batch_belongs_to_its_item():
    items = [
        {"id": "a", "prompt": "fine"},
        {"id": "b", "prompt": "[[fault:429]]"},
        {"id": "c", "prompt": "[[fault:500]]"},
    ]
    async with serving() as (_, client):
        async with client.post("/batch", json={"model": "m", "items": items}) as reply:
            a, b, c = (await reply.json())["results"]

        assert reply.status == 200
        assert a["answer"] == expected_answer("fine")
        assert b["error"] == {"type": "rate_limited", "message": "simulated fault 429", "retry_after": 1}
        assert c["error"] == {"type": "server_error", "message": "simulated fault 500"}


async def test_an_empty_batch_has_no_results():
    async with serving() as (_, client), client.post("/batch", json={"model": "m", "items": []}) as reply:
        assert await reply.json() == {"results": []}


async def test_a_chat_with_one_user_message_has_the_answer_of_its_text():
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    async with serving() as (_, client), client.post("/v1/chat/completions", json=chat) as reply:
        body = await reply.json()

    assert body["choices"][0]["message"]["content"] == expected_answer("hi")
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


async def test_a_chat_of_several_messages_has_the_answer_of_all_of_them():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    chat = {"model": "m", "messages": messages}
    async with serving() as (_, client), client.post("/v1/chat/completions", json=chat) as reply:
        body = await reply.json()

    assert body["choices"][0]["message"]["content"] == expected_answer(messages)  # type: ignore[arg-type]


async def test_a_call_over_the_limit_gets_429_with_retry_after():
    async with serving(SimulatorConfig(models=("m",), instant=True, rpm={"m": 1})) as (backend, client):
        async with client.post("/single", json=single("one")) as first:
            assert first.status == 200
        async with client.post("/single", json=single("two")) as second:
            body = await second.json()

        assert second.status == 429
        assert 1 <= int(second.headers["Retry-After"]) <= 60
        assert body["error"]["type"] == "rate_limited"
        assert body["error"]["retry_after"] == int(second.headers["Retry-After"])
        assert [(call.status, call.fault) for call in backend.log.calls()] == [(200, None), (429, "limit")]


async def test_items_of_a_batch_over_the_limit_are_refused_one_by_one():
    items = [{"id": str(number), "prompt": "p"} for number in range(5)]
    config = SimulatorConfig(models=("m",), instant=True, rpm={"m": 3})
    batch = {"model": "m", "items": items}
    async with serving(config) as (_, client), client.post("/batch", json=batch) as reply:
        results = (await reply.json())["results"]

    assert ["answer" in result for result in results] == [True, True, True, False, False]


async def test_the_log_of_admitted_calls_never_shows_more_than_the_limit_in_a_window():
    config = SimulatorConfig(models=("m",), instant=True, rpm={"m": 5}, window_s=0.05)
    async with serving(config) as (backend, client):
        for number in range(200):
            async with client.post("/single", json=single(f"p{number}")):
                pass

        admitted = [call.arrived_monotonic for call in backend.log.calls() if call.status == 200]
        assert worst_window(admitted, 0.05) <= 5


async def test_a_limit_changed_live_holds_from_the_next_call():
    async with serving() as (_, client):
        async with client.put("/limits", json={"m": 0}) as changed:
            assert await changed.json() == {"m": 0}
        async with client.post("/single", json=single("p")) as refused:
            assert refused.status == 429
        async with client.put("/limits", json={"m": None}):
            pass
        async with client.post("/single", json=single("p")) as answered:
            assert answered.status == 200
        async with client.get("/limits") as limits:
            assert await limits.json() == {"m": None}


@pytest.mark.parametrize(
    ("limits", "status"),
    [({"m": -1}, 422), ({"m": True}, 422), ({"m": 1.5}, 422), ({"unknown": 1}, 404), ([], 422)],
)
async def test_nonsense_limits_are_refused_and_change_nothing(limits: object, status: int):
    async with serving() as (_, client):
        async with client.put("/limits", json=limits) as refused:
            assert refused.status == status
        async with client.get("/limits") as unchanged:
            assert await unchanged.json() == {"m": None}


async def test_rates_of_faults_changed_live_hold_from_the_next_call():
    async with serving() as (_, client):
        async with client.put("/faults", json={"error_rate": 1}) as changed:
            assert (await changed.json())["error_rate"] == 1
        async with client.post("/single", json=single("p")) as faulty:
            assert faulty.status == 500
        async with client.put("/faults", json={}):
            pass
        async with client.post("/single", json=single("p")) as answered:
            assert answered.status == 200


@pytest.mark.parametrize("rates", [{"error_rate": 2}, {"error_rate": True}, {"unknown": 0.1}, {"hang_rate": "1"}, []])
async def test_nonsense_rates_are_refused_and_change_nothing(rates: object):
    async with serving() as (_, client):
        async with client.put("/faults", json=rates) as refused:
            assert refused.status == 422
        async with client.get("/faults") as unchanged:
            assert set((await unchanged.json()).values()) == {0.0}


async def test_an_unknown_model_is_404_and_any_model_serves_it():
    async with serving() as (_, client):
        async with client.post("/single", json=single("p", "other")) as reply:
            assert (reply.status, (await reply.json())["error"]["type"]) == (404, "unknown_model")
        batch = {"model": "other", "items": [{"id": "1", "prompt": "p"}]}
        async with client.post("/batch", json=batch) as reply:
            assert reply.status == 404
    config = SimulatorConfig(instant=True, any_model=True)
    async with serving(config) as (_, client), client.post("/single", json=single("p", "other")) as reply:
        assert reply.status == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/single", b"", 400),
        ("/single", b"{", 400),
        ("/single", b"\xff", 400),
        ("/single", b"[" * 100_000, 400),
        ("/single", b"[]", 422),
        ("/single", b'{"prompt": "p"}', 422),
        ("/single", b'{"model": "m"}', 422),
        ("/single", b'{"model": "m", "prompt": "p", "params": 1}', 422),
        ("/batch", b'{"model": "m"}', 422),
        ("/batch", b'{"model": "m", "items": [{"prompt": "p"}]}', 422),
        ("/v1/chat/completions", b'{"model": "m", "messages": []}', 422),
        ("/v1/chat/completions", b'{"model": "m", "messages": [1], "stream": true}', 400),
    ],
)
async def test_a_body_that_cannot_be_used_is_refused_and_logged(path: str, body: bytes, status: int):
    async with serving() as (backend, client):
        async with client.post(path, data=body) as reply:
            assert reply.status == status
            assert "message" in (await reply.json())["error"]

        assert [call.status for call in backend.log.calls()] == [status]


@pytest.mark.parametrize(("fault", "retry_after"), [(400, None), (429, "1"), (500, None), (503, "1"), (529, "1")])
async def test_a_marker_forces_a_status(fault: int, retry_after: str | None):
    async with serving() as (backend, client):
        async with client.post("/single", json=single(f"[[fault:{fault}]]")) as reply:
            assert (reply.status, reply.headers.get("Retry-After")) == (fault, retry_after)

        (call,) = backend.log.calls()
        assert (call.status, call.fault) == (fault, str(fault))


async def test_a_forced_429_does_not_count_against_the_limit():
    async with serving(SimulatorConfig(models=("m",), instant=True, rpm={"m": 1})) as (_, client):
        statuses = []
        for _ in range(3):
            async with client.post("/single", json=single("[[fault:429 x2]]")) as reply:
                statuses.append(reply.status)

    assert statuses == [429, 429, 200]


async def test_an_unreadable_reply_says_200_and_is_not_json():
    async with serving() as (_, client), client.post("/single", json=single("[[fault:unreadable]]")) as reply:
        assert reply.status == 200
        with pytest.raises(json.JSONDecodeError):
            await reply.json()


@pytest.mark.parametrize("path", ["/single", "/batch"])
async def test_a_reset_breaks_the_connection(path: str):
    prompt = "[[fault:reset]]"
    items = [{"id": "1", "prompt": prompt}, {"id": "2", "prompt": "fine"}]
    async with serving() as (backend, client):
        with pytest.raises(aiohttp.ClientOSError, match="Connection reset"):
            await client.post(path, json={"model": "m", "prompt": prompt, "items": items})

        call = backend.log.calls()[0]
        assert (call.status, call.fault) == (None, "reset")
        assert call.finished_at is not None


async def test_a_hanging_call_ends_when_its_client_leaves():
    async with serving() as (backend, client):
        request = asyncio.create_task(client.post("/single", json=single("[[fault:hang]]")))
        await until_logged(backend, 1)
        assert backend.log.calls()[0].finished_at is None

        request.cancel()
        await until_logged(backend, 1, finished=True)

        (call,) = backend.log.calls()
        assert (call.status, call.fault) == (None, "hang")


async def test_a_client_that_leaves_a_slow_call_is_logged_as_such():
    async with serving(SimulatorConfig(models=("m",), speed=1e-6)) as (backend, client):
        request = asyncio.create_task(client.post("/single", json=single("p")))
        await until_logged(backend, 1)

        request.cancel()
        await until_logged(backend, 1, finished=True)

        assert backend.log.calls()[0].fault == "client left"


async def test_calls_under_way_at_the_stop_are_in_the_file_without_an_end(tmp_path: Path):
    config = SimulatorConfig(models=("m",), speed=1e-6, log_path=tmp_path / "calls.jsonl")
    async with aiohttp.ClientSession() as client:
        async with running(config) as backend:
            prompts = ["slow", "[[fault:hang]]"]
            requests = [
                asyncio.create_task(client.post(f"{backend.url}/single", json=single(prompt))) for prompt in prompts
            ]
            await until_logged(backend, 2)

        outcomes = await asyncio.gather(*requests, return_exceptions=True)

    assert all(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes)
    calls = read_calls(tmp_path / "calls.jsonl")
    assert {call.fault for call in calls} == {None, "hang"}
    assert all(call.status is None and call.finished_at is None for call in calls)


async def test_the_log_file_never_holds_a_prompt_or_an_answer(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    config = SimulatorConfig(models=("m",), instant=True, log_path=path)
    async with serving(config) as (_, client), client.post("/single", json=single("secret words")):
        pass

    assert "secret" not in path.read_text()
    assert expected_answer("secret words") not in path.read_text()
    assert len(read_calls(path)) == 1


async def test_rates_of_a_model_replace_the_common_ones():
    config = SimulatorConfig(models=("good", "bad"), instant=True, faults_by_model={"bad": FaultRates(error_rate=1.0)})
    async with serving(config) as (_, client):
        async with client.post("/single", json=single("p", "good")) as reply:
            assert reply.status == 200
        async with client.post("/single", json=single("p", "bad")) as reply:
            assert reply.status == 500


async def test_the_same_seed_gives_the_same_faults_per_model():
    async def statuses(models: str) -> list[int]:
        found = []
        config = SimulatorConfig(models=("a", "b"), instant=True, seed=3, faults=FaultRates(error_rate=0.5))
        async with serving(config) as (_, client):
            for model in models:
                async with client.post("/single", json=single("p", model)) as reply:
                    found.append(reply.status)
        return [status for status, model in zip(found, models, strict=True) if model == "a"]

    assert await statuses("a" * 20) == await statuses("ab" * 20)


async def test_calls_are_paged_over_http():
    async with serving() as (_, client):
        for number in range(5):
            async with client.post("/single", json=single(f"p{number}")):
                pass
        async with client.get("/calls?since=1&limit=2&model=m") as reply:
            page = await reply.json()
        async with client.get("/calls?since=x") as refused:
            assert refused.status == 400

    assert [call["seq"] for call in page["calls"]] == [2, 3]
    assert (page["next"], page["dropped"]) == (3, 0)


async def test_health_names_the_models():
    async with serving() as (_, client), client.get("/health") as reply:
        assert await reply.json() == {"ok": True, "models": ["m"]}


async def test_a_thousand_calls_wait_at_once():
    config = SimulatorConfig(models=("m",), speed=1e-6)
    connector = aiohttp.TCPConnector(limit=0)
    async with running(config) as backend, aiohttp.ClientSession(connector=connector) as client:
        url = f"{backend.url}/batch"
        items = [{"id": str(number), "prompt": "p"} for number in range(100)]
        requests = [asyncio.create_task(client.post(url, json={"model": "m", "items": items})) for _ in range(10)]

        await until_logged(backend, 1000)

        assert max(call.in_flight for call in backend.log.calls()) == 999
        for request in requests:
            request.cancel()


async def test_a_port_in_use_is_told_with_its_remedy():
    async with running(INSTANT) as backend:
        port = int(backend.url.rpartition(":")[2])

        with pytest.raises(CannotListen, match=rf"port {port} .*--port"):
            async with running(INSTANT, port=port):
                pass


async def test_a_log_file_that_cannot_be_written_is_told(tmp_path: Path):
    with pytest.raises(CannotListen, match="cannot write the call log"):
        async with running(SimulatorConfig(log_path=tmp_path / "missing" / "calls.jsonl")):
            pass
