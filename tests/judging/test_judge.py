import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pydantic
import pytest

from lm_eval_hybrid.common.errors import HybridError
from lm_eval_hybrid.judging.load import REPLIES_FILE, CachedJudge, load
from lm_eval_hybrid.judging.recipe import JudgeRecipe
from tests.judging.judge_server import Fault, JudgeServer, completion, never_wait, says
from tests.tiny_system import CHAT_TEMPLATE, write_system

KEY = "sk-secret-of-the-test"
LIMITS = {"max_tokens", "max_completion_tokens"}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting, no key of the machine's, and no proxy between us and the loopback server."""
    never_wait(monkeypatch)
    for name in ("http_proxy", "https_proxy", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def recipe(url: str, **changes: object) -> JudgeRecipe:
    usual = {"timeout": 5.0, "retries": 2, "max_tokens": 64}
    return JudgeRecipe(kind="endpoint", model="grader", url=url, **usual | changes)


def echo(prompt: str) -> str:
    return f"to {prompt}"


def test_replies_keep_the_prompts_order_whatever_comes_first() -> None:
    second = threading.Event()

    def grader(prompt: str) -> str:
        if prompt == "1":
            second.set()
        elif prompt == "0":
            assert second.wait(5)  # so the two are asked at once
        return echo(prompt)

    with JudgeServer(grader=grader) as server:
        prompts = [str(number) for number in range(20)]
        assert load(recipe(server.url, concurrency=4)).ask(prompts) == [echo(prompt) for prompt in prompts]
        assert sorted(server.prompts) == sorted(prompts)


def test_a_request_is_one_plain_chat_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")  # as files of keys end
    with JudgeServer(grader=echo) as server:
        judge = load(recipe(server.url + "/", key_variable="MY_KEY"))
        assert judge.ask(["one"]) == ["to one"]
        load(recipe(server.url)).ask(["one"])
    message = {"role": "user", "content": "one"}
    assert server.asked[0] == {"model": "grader", "messages": [message], "max_tokens": 64, "temperature": 0}
    assert server.keys == [f"Bearer {KEY}", None] and server.paths == ["/v1/chat/completions"] * 2
    assert KEY not in judge.identity and "grader" in judge.identity


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, headers={"Retry-After": "0"}),
        Fault(503, b"overloaded"),
        Fault(body=completion("a reply that breaks off"), cut=20),
        Fault(body=completion("a reply that never starts"), cut=0),
    ],
)
def test_what_may_pass_is_tried_again(fault: Fault) -> None:
    with JudgeServer(fault, fault, grader=echo) as server:
        assert load(recipe(server.url)).ask(["one"]) == ["to one"]
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(500, b'{"error": {"message": "no memory\\u001b[2J"}}'), "status 500 (no memory\\x1b[2J), after 3 tries"),
        (Fault(429), "status 429 (nothing), after 3 tries"),
        (Fault(body=completion("cut"), cut=10), "a broken connection"),
    ],
)
def test_what_does_not_pass_ends_after_the_last_try(fault: Fault, said: str) -> None:
    with JudgeServer(always=fault) as server, pytest.raises(HybridError) as error:
        load(recipe(server.url)).ask(["one"])
    assert said in str(error.value) and "replies that came are kept" in str(error.value)
    assert len(server.asked) == 3


@pytest.mark.parametrize("endless", [0.02, 60.0])
def test_a_reply_without_end_is_a_timeout(endless: float) -> None:
    with JudgeServer(always=Fault(endless=endless)) as server:
        with pytest.raises(HybridError, match=r"no whole answer within 0\.3 seconds, after 2 tries"):
            load(recipe(server.url, timeout=0.3, retries=1)).ask(["one"])
        assert len(server.asked) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_at_once_and_is_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"error": {"message": f"wrong key {KEY}", "param": None}}).encode()
    with JudgeServer(always=Fault(status, body)) as server:
        with pytest.raises(HybridError, match="set OPENAI_API_KEY: it is not set"):
            load(recipe(server.url)).ask(["one"])
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with pytest.raises(HybridError, match=r"status 40. \(wrong key \*\*\*\).*the key in it is refused") as error:
            load(recipe(server.url)).ask(["one"])
        assert KEY not in str(error.value) and len(server.asked) == 2


@pytest.mark.parametrize("key", ["two words", "sch\u00f6n", "a\x00b"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(HybridError, match="OPENAI_API_KEY holds characters") as error:
        load(recipe("http://127.0.0.1:9/v1"))
    assert key not in str(error.value)


def test_a_refused_connection_ends_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(HybridError, match=f"{url}/chat/completions: .*; start it"):
            load(recipe(url, retries=100)).ask(["one"])


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(body=b"<html>welcome</html>"), "no chat completion but <html>welcome</html>; check judge.url"),
        (Fault(), "no chat completion but nothing"),
        (Fault(body=b'{"choices": []}'), "no chat completion but"),
        (Fault(body=b'{"choices": [{"message": {"content": 3}}]}'), "no chat completion but"),
        (Fault(body=b'{"choices": [{"text": "of another API"}]}'), "no chat completion but"),
        (Fault(body=b"[" * 100_000), "no chat completion but"),
        (Fault(404, b"nothing here"), r"status 404 \(nothing here\); check judge.url"),
        (Fault(400, b'{"error": {"message": "no such model", "param": "model"}}'), r"status 400 \(no such model\)"),
    ],
)
def test_what_is_no_chat_completion_ends_at_once(fault: Fault, said: str) -> None:
    with JudgeServer(always=fault) as server:
        with pytest.raises(HybridError, match=said):
            load(recipe(server.url)).ask(["one"])
        assert len(server.asked) == 1


def test_a_reply_without_words_is_empty() -> None:
    with JudgeServer(says(None)) as server:
        assert load(recipe(server.url)).ask(["one"]) == [""]


def test_no_redirect_takes_the_key_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with JudgeServer(grader=echo) as other:
        redirect = Fault(307, headers={"Location": f"{other.url}/chat/completions"})
        with JudgeServer(always=redirect) as server, pytest.raises(HybridError, match="status 307"):
            load(recipe(server.url)).ask(["one"])
        assert not other.asked and server.keys == [f"Bearer {KEY}"]


def test_models_of_openai_are_asked_in_their_own_terms() -> None:
    own, others = (load(recipe(url))._lm for url in ("https://api.openai.com/v1", "https://host/v1"))
    limits = [set(lm._dialect._create_payload(lm, [], gen_kwargs={})) & LIMITS for lm in (own, others)]
    assert limits == [{"max_completion_tokens"}, {"max_tokens"}]


def test_the_key_is_never_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    with JudgeServer(Fault(500, KEY.encode()), says(KEY), Fault(401, KEY.encode())) as server:
        judge = load(recipe(server.url, concurrency=1))
        assert judge.ask(["one"]) == [KEY]  # a reply is what it is
        with pytest.raises(HybridError, match="401"):
            judge.ask(["two"])
    assert "OPENAI_API_KEY" in caplog.text and KEY not in caplog.text


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.models.api_models.find_spec", lambda name: None)
    with pytest.raises(HybridError, match=r"pip install 'lm-eval-hybrid\[judge\]'"):
        load(recipe("https://host/v1"))


def test_what_came_before_a_failure_is_not_asked_again(tmp_path: Path) -> None:
    with JudgeServer(says("first"), says("second"), Fault(401), grader=echo) as server:
        judge = CachedJudge(load(recipe(server.url, concurrency=1)), tmp_path)
        with pytest.raises(HybridError, match="status 401"):
            judge.ask(["a", "b", "c", "d"])
        again = CachedJudge(load(recipe(server.url, concurrency=1)), tmp_path)
        assert again.ask(["d", "c", "b", "a"]) == ["to d", "to c", "second", "first"]
        assert server.prompts == ["a", "b", "c", "d", "c"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "ftp://host/v1"}, "url must be http"),
        ({"url": None}, "found none"),
        ({"url": "http:///v1"}, "url must be http"),
        ({"url": "http://host:port/v1"}, "url must be http"),
        ({"url": "http://me:secret@host/v1"}, "without a user"),
        ({"url": "http://host/v1?key=secret"}, "without a user"),
        ({"url": "http://host/\nv1"}, "url must be http"),
        ({"url": "http://host/sch\u00f6n"}, "in ASCII"),
        ({"arguments": "pretrained=x"}, "arguments are for kind 'harness'"),
        ({"kind": "harness"}, "url is for kind 'endpoint'"),
        ({"price_in": 1.0}, "must be given together"),
        ({"key_variable": "sk-123"}, "key_variable"),
        ({"retries": -1}, "retries"),
        ({"key": "sk-123"}, "key"),
    ],
)
def test_a_recipe_is_checked(changes: dict, said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said) as error:
        JudgeRecipe(**{"kind": "endpoint", "model": "m", "url": "http://host/v1"} | changes)
    assert "url" not in changes or "secret" not in error.value.errors()[0]["msg"]


class Counting:
    """A judge that repeats its prompts, and is interrupted at the first one over `patience`."""

    def __init__(self, identity: str = "one", patience: int = 99) -> None:
        self.identity = identity
        self.patience = patience
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[str], record: Callable[[int, str], None]) -> list[str]:
        for position, prompt in enumerate(prompts):
            if len(self.asked) == self.patience:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            record(position, echo(prompt))
        return [echo(prompt) for prompt in prompts]


def test_an_interrupted_judge_is_asked_nothing_twice(tmp_path: Path) -> None:
    first, second = Counting(patience=2), Counting()
    with pytest.raises(KeyboardInterrupt):
        CachedJudge(first, tmp_path).ask(["a", "b", "a", "c"])
    with (tmp_path / REPLIES_FILE).open("ab") as file:
        file.write(b'{"key": "abc", "rep')  # and what a kill tears
    assert CachedJudge(second, tmp_path).ask(["a", "b", "a", "c"]) == ["to a", "to b", "to a", "to c"]
    assert (first.asked, second.asked) == (["a", "b"], ["c"])
    third = Counting()
    assert CachedJudge(third, tmp_path).ask(["c", "\ud800", "c"]) == ["to c", "to \ud800", "to c"]
    assert third.asked == ["\ud800"]


def test_another_judge_is_asked_anew(tmp_path: Path) -> None:
    CachedJudge(Counting("one"), tmp_path).ask(["a"])
    other = Counting("other")
    CachedJudge(other, tmp_path).ask(["a"])
    assert other.asked == ["a"]


def test_replies_that_cannot_be_read_or_kept_are_one_line(tmp_path: Path) -> None:
    (tmp_path / REPLIES_FILE).write_text('{"key": "a"}\n')
    with pytest.raises(HybridError, match=r"judge\.jsonl:1: no reply of a judge"):
        CachedJudge(Counting(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(HybridError, match="cannot keep replies "):
        CachedJudge(Counting(), tmp_path / "file").ask(["a"])


def test_a_full_disk_stops_the_judge_and_leaves_what_was_kept(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    CachedJudge(Counting(), tmp_path).ask(["a"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / REPLIES_FILE).stat().st_size + 50, hard))
        with pytest.raises(HybridError, match=r"judge\.jsonl: cannot keep replies \(File too large"):
            CachedJudge(Counting(), tmp_path).ask(["b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    judge = Counting()
    assert CachedJudge(judge, tmp_path).ask(["a", "b"]) == ["to a", "to b"]
    assert judge.asked == ["b"]


def test_a_model_of_the_harness_answers_in_order_with_its_chat_template(tmp_path: Path) -> None:
    system = write_system(tmp_path, CHAT_TEMPLATE)
    arguments = f"pretrained={system.base},dtype=float32,device=cpu"
    judge = load(JudgeRecipe(kind="harness", model="hf", arguments=arguments, max_tokens=8, concurrency=2))
    assert judge._context("Why?") == "<user>Why?</user><assistant>"
    replies = judge.ask(["Why?", "A longer question: why?", "How?"])
    assert len(set(replies)) > 1 and [judge.ask([prompt])[0] for prompt in ("Why?", "How?")] == replies[::2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "no-such-model"}, "no-such-model"),
        ({"model": "hf", "arguments": "pretrained=/no/such/folder"}, "judge.arguments"),
        ({"model": "hf", "arguments": "nonsense"}, "judge.arguments"),
    ],
)
def test_a_model_that_the_harness_cannot_load_is_one_line(changes: dict, said: str) -> None:
    with pytest.raises(HybridError, match=said) as error:
        load(JudgeRecipe(kind="harness", **changes))
    assert "\n" not in str(error.value)
