"""Reward functions that ask a server: again after errors that pass, and several completions at a time."""

import asyncio
import http.client
import http.server
import threading
import time

import pytest
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, Retry, RewardFunction

AWAY = ConnectionError("the judge is away")
SOON = {"first_wait": 0.01, "longest_wait": 0.02}


@pytest.fixture
def rollout(tiny_tokenizer):
    """Two prompts with two completions each, of 2, 4, 1 and 3 words."""
    texts = [["fox runs", "the fox sleeps ."], ["fox", "the fox runs"]]
    return rollout_of_words(tiny_tokenizer, ["the fox", "the dog"], texts, {"answer": [7, 8]})


def failing(times, error=AWAY, asynchronous=False):
    """A function that fails so many times before it counts words, and how often it was called."""
    calls = []

    def counts(completions):
        calls.append(len(completions))
        if len(calls) <= times:
            raise error
        return [len(text.split()) for text in completions]

    async def later(completions):
        await asyncio.sleep(0)
        return counts(completions)

    return (later if asynchronous else counts), calls


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a function", "an async one"])
@pytest.mark.parametrize("settings", [{}, {"time_limit": 20.0}], ids=["no time limit", "a time limit"])
def test_a_call_is_made_again_after_an_error_that_may_pass(rollout, caplog, asynchronous, settings):
    function, calls = failing(2, asynchronous=asynchronous)
    reward = RewardFunction(function, name="judge", retry=Retry(3, **SOON), **settings)
    assert reward.components(rollout)["judge"].tolist() == [2.0, 4.0, 1.0, 3.0]
    assert calls == [4, 4, 4]
    assert caplog.messages == [
        "reward function judge: attempt 1 of 3: ConnectionError: the judge is away; again in 0.01 s",
        "reward function judge: attempt 2 of 3: ConnectionError: the judge is away; again in 0.02 s",
    ]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a function", "an async one"])
def test_the_last_attempt_that_fails_stops_the_run_in_one_line(rollout, asynchronous):
    function, calls = failing(9, asynchronous=asynchronous)
    said = (
        r"^reward function judge raised ConnectionError: the judge is away \(.*test_retry.py, line \d+\) in each of 3 "
    )
    with pytest.raises(TrainingError, match=said + "attempts; rows of step 0: 0, 1$"):
        RewardFunction(function, name="judge", retry=Retry(3, **SOON)).components(rollout)
    assert len(calls) == 3


def test_an_error_that_was_not_named_stops_the_run_at_once(rollout):
    function, calls = failing(1, KeyError("score"))
    with pytest.raises(TrainingError, match=r"raised KeyError: 'score' \(.*\); rows of step"):
        RewardFunction(function, retry=Retry(3, **SOON)).components(rollout)
    assert len(calls) == 1


def test_errors_are_named_by_their_import_paths_and_subclasses_count(rollout):
    retry = Retry(2, **SOON, errors=["http.client.HTTPException"])
    function, _ = failing(1, http.client.IncompleteRead(b""))
    assert RewardFunction(function, name="judge", retry=retry).components(rollout)["judge"].tolist()[0] == 2.0
    function, _ = failing(1)
    with pytest.raises(TrainingError, match="ConnectionError"):
        RewardFunction(function, retry=retry).components(rollout)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a function", "an async one"])
def test_a_call_that_took_too_long_is_made_again(rollout, asynchronous):
    calls = []

    def hangs_once(completions):
        calls.append(None)
        time.sleep(3.0 if len(calls) == 1 else 0.0)
        return [1.0] * len(completions)

    async def waits_once(completions):
        calls.append(None)
        await asyncio.sleep(3.0 if len(calls) == 1 else 0.0)
        return [1.0] * len(completions)

    function = waits_once if asynchronous else hangs_once
    began = time.monotonic()
    reward = RewardFunction(function, name="judge", time_limit=0.2, retry=Retry(2, **SOON))
    assert reward.components(rollout)["judge"].tolist() == [1.0] * 4
    assert time.monotonic() - began < 2.0 and len(calls) == 2


def test_a_server_that_never_answers_is_named_with_the_attempts(rollout):
    async def waits(completions):
        await asyncio.sleep(60)

    with pytest.raises(TrainingError, match=r"no answer within its time_limit of 0.05 s in each of 2 attempts; rows"):
        RewardFunction(waits, time_limit=0.05, retry=Retry(2, **SOON)).components(rollout)


def test_a_real_server_that_is_away_for_a_while_is_waited_for(rollout):
    class Judge(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            answer = str(len(text.split())).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Judge, bind_and_activate=False) as server:
        server.server_bind()  # the port is ours, and nobody listens at it yet

        def asked(completions):
            scores = []
            for text in completions:
                connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
                connection.request("POST", "/", text.encode())
                scores.append(float(connection.getresponse().read()))
            return scores

        with pytest.raises(TrainingError, match=r"raised ConnectionRefusedError: .* in each of 2 attempts"):
            RewardFunction(asked, retry=Retry(2, **SOON)).components(rollout)

        def comes_back():
            server.server_activate()
            server.serve_forever()

        back = threading.Timer(0.5, comes_back)
        back.start()
        found = RewardFunction(asked, name="judge", retry=Retry(8, 0.05)).components(rollout)
        server.shutdown()
        back.join()
    assert found["judge"].tolist() == [2.0, 4.0, 1.0, 3.0]


def counted(seconds=0.05):
    """An `async` function and a plain one, and what both count: those that run now, and the most that did."""
    state = {"now": 0, "most": 0, "seen": []}
    lock = threading.Lock()

    def enter(completions, answer):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
            state["seen"].append((completions, answer))

    def leave(completions):
        with lock:
            state["now"] -= 1
        return [len(completions[0].split())]

    async def waits(completions, answer):
        enter(completions, answer)
        await asyncio.sleep(seconds)
        return leave(completions)

    def blocks(completions, answer):
        enter(completions, answer)
        time.sleep(seconds)
        return leave(completions)

    return {"async": waits, "plain": blocks}, state


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("limit", [1, 2, 9])
def test_completions_are_scored_by_themselves_as_many_at_a_time_as_it_says(rollout, kind, limit):
    functions, state = counted()
    reward = RewardFunction(functions[kind], name="judge", max_concurrency=limit)
    assert reward.components(rollout)["judge"].tolist() == [2.0, 4.0, 1.0, 3.0]
    assert state["most"] == min(limit, 4)
    answers = {"fox runs": 7, "the fox sleeps .": 7, "fox": 8, "the fox runs": 8}
    assert sorted(state["seen"]) == sorted(([text], [answer]) for text, answer in answers.items())


def test_they_run_beside_functions_that_compute(rollout):
    scored = threading.Event()

    def judge(completions):
        scored.set()
        return [1.0]

    def computes(completions):
        return [float(scored.wait(20.0))] * len(completions)

    parts = [RewardFunction(computes), RewardFunction(judge, max_concurrency=2)]
    assert CompositeReward(parts).components(rollout)["computes"].tolist() == [1.0] * 4


def test_the_time_limit_and_the_attempts_are_those_of_each_completion(rollout):
    tried = {}

    async def judge(completions):
        text = completions[0]
        tried[text] = tried.get(text, 0) + 1
        if text == "fox" and tried[text] == 1:
            raise TimeoutError
        if text == "fox runs" and tried[text] == 1:
            await asyncio.sleep(60)
        return [len(text.split())]

    reward = RewardFunction(judge, max_concurrency=2, time_limit=0.3, retry=Retry(2, **SOON))
    assert reward.components(rollout)["judge"].tolist() == [2.0, 4.0, 1.0, 3.0]
    assert tried == {"fox runs": 2, "the fox sleeps .": 1, "fox": 2, "the fox runs": 1}


def test_after_an_error_no_further_completion_is_asked_about(rollout):
    seen = []

    async def judge(completions):
        seen.append(completions[0])
        raise ValueError("no score")

    with pytest.raises(TrainingError, match=r"^reward function judge raised ValueError: no score"):
        RewardFunction(judge, max_concurrency=1).components(rollout)
    time.sleep(0.05)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0, 2.0], "returned 2 values, expected 1, one per completion"),
        ([float("inf")], "returned inf at position 3, expected a finite float32 number"),
        (1.0, "returned float, expected a list"),
    ],
)
def test_a_wrong_answer_about_one_completion_is_named_by_its_position(rollout, answer, said):
    async def judge(completions):
        return answer if completions == ["the fox runs"] else [1.0]

    with pytest.raises(TrainingError, match=said):
        RewardFunction(judge, max_concurrency=4).components(rollout)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attempts": 0}, "retry.attempts: got 0, expected at least 1"),
        ({"first_wait": -1.0}, "retry.first_wait: got -1.0, expected a finite number of seconds of at least 0"),
        ({"longest_wait": float("inf")}, "retry.longest_wait: got inf, expected a finite"),
        ({"errors": []}, "retry.errors: got none, expected names such as ConnectionError"),
        ({"errors": ["ConectionError"]}, "retry.errors: got 'ConectionError', expected the name of an exception"),
        ({"errors": ["SystemExit"]}, "retry.errors: got 'SystemExit', expected the name of an exception"),
        ({"errors": ["http.client.Nothing"]}, "retry.errors http.client.Nothing: module http.client has no 'Nothing'"),
    ],
)
def test_attempts_that_cannot_be_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Retry(**settings)


def test_a_number_of_calls_at_a_time_below_one_is_refused():
    with pytest.raises(UserError, match="max_concurrency: got 0, expected at least 1"):
        RewardFunction(len, max_concurrency=0)


def test_with_the_defaults_a_server_may_be_away_for_a_minute():
    assert Retry().waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0] and sum(Retry().waits) > 60
