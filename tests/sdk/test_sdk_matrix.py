"""Every method of the openai and anthropic SDKs, sync and async, through the router.

The SDK itself says which methods there are. A method that an engine can answer has a row below with a check of its
answer. Every other method is called with made-up arguments and must be refused with an error that says so: a new
version of an SDK with a method that the router passes on makes a test fail until it has a row.
"""

import asyncio
import unittest
import warnings

import anthropic
import methods
import openai
from methods import elements, await_if_needed
from support import Router, mock_workers, script

MODEL = "mock-model"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]
KEY = "client-key"
# A request to a router that does not answer fails the test soon.
OPTIONS = {"max_retries": 0, "timeout": 30}
SOUND = ("speech.wav", b"RIFF0000WAVE", "audio/wav")
PICTURE = ("image.png", b"\x89PNG\r\n\x1a\n", "image/png")

# Each method's arguments, and what must hold of the answer.
OPENAI = {
    "chat.completions.create": (
        {"model": MODEL, "messages": HELLO, "max_tokens": 4},
        lambda answer: answer.usage.completion_tokens == 4 and answer.choices[0].message.content,
    ),
    "completions.create": (
        {"model": MODEL, "prompt": "Once", "max_tokens": 4},
        lambda answer: answer.usage.completion_tokens == 4 and answer.choices[0].text,
    ),
    "embeddings.create": (
        {"model": MODEL, "input": ["one", "two"]},
        lambda answer: [each.index for each in answer.data] == [0, 1] and answer.data[0].embedding,
    ),
    "models.list": ({}, lambda models: [model.id for model in models.data] == [MODEL]),
    "models.retrieve": (
        {"model": MODEL},
        lambda model: model.id == MODEL and model.owned_by == "mock" and model.max_model_len > 0,
    ),
    "responses.create": (
        {"model": MODEL, "input": "Hello", "max_output_tokens": 4},
        lambda answer: answer.status == "completed" and answer.output[0].content[0].text,
    ),
    "responses.input_tokens.count": ({"model": MODEL, "input": "Hello"}, lambda answer: answer.input_tokens > 0),
    "audio.transcriptions.create": ({"model": MODEL, "file": SOUND}, lambda answer: answer.text),
    "audio.translations.create": ({"model": MODEL, "file": SOUND}, lambda answer: answer.text),
    "audio.speech.create": (
        {"model": MODEL, "input": "twelve bytes", "voice": "alloy"},
        lambda answer: (answer.response.headers["content-type"], answer.content) == ("audio/mpeg", b"twelve bytes"),
    ),
    "images.generate": ({"model": MODEL, "prompt": "a cat", "n": 2}, lambda answer: len(answer.data) == 2),
    "images.edit": ({"model": MODEL, "image": PICTURE, "prompt": "a dog", "n": 2}, lambda answer: len(answer.data) == 2),
    "images.create_variation": ({"model": MODEL, "image": PICTURE, "n": 2}, lambda answer: len(answer.data) == 2),
    "moderations.create": (
        {"model": MODEL, "input": [f"text {number}" for number in range(16)]},
        lambda answer: {result.flagged for result in answer.results} == {False, True},
    ),
}
ANTHROPIC = {
    "messages.create": (
        {"model": MODEL, "messages": HELLO, "max_tokens": 4},
        lambda answer: answer.usage.output_tokens == 4 and answer.content[0].text,
    ),
    "messages.count_tokens": ({"model": MODEL, "messages": HELLO}, lambda answer: answer.input_tokens > 0),
    "models.list": ({}, lambda models: [model.id for model in models.data] == [MODEL]),
    "models.retrieve": ({"model_id": MODEL}, lambda model: model.id == MODEL),
}
ANTHROPIC["messages.parse"] = ANTHROPIC["messages.create"]
# The beta methods send the same requests.
OPENAI |= {
    f"beta.{name}": OPENAI[name]
    for name in ("chat.completions.create", "responses.create", "responses.input_tokens.count")
}
ANTHROPIC |= {f"beta.{name}": row for name, row in ANTHROPIC.items()}
# These are tested apart: they return a manager of a stream.
STREAMED = {"messages.stream": None, "beta.messages.stream": None}
# The error codes that a refused method may get.
REFUSED = {
    404: {"not_supported", "route_not_found", "response_not_found"},
    405: {"method_not_allowed"},
}
# The methods whose refusal must name what is not there, and the name.
NAMED = {
    "batches.create": "batches",
    "batches.list": "batches",
    "batches.retrieve": "batches",
    "files.create": "files",
    "files.list": "files",
    "files.content": "files",
    "files.upload": "files",
    "fine_tuning.jobs.create": "fine-tuning jobs",
    "vector_stores.create": "vector stores",
    "messages.batches.create": "batches",
    "messages.batches.list": "batches",
    "beta.messages.batches.create": "batches",
}


class Clients(unittest.IsolatedAsyncioTestCase):
    """A router before two mock workers, and the four kinds of client."""

    @classmethod
    def setUpClass(cls):
        workers, urls = mock_workers(2)
        cls.addClassCleanup(workers.stop)
        cls.router = Router(urls, "--api-key", KEY, "--disable-retries")
        cls.addClassCleanup(cls.router.stop)

    async def asyncSetUp(self):
        # The blocking clients block the loop, which is no fault here; nor is it that a method is deprecated.
        asyncio.get_running_loop().slow_callback_duration = OPTIONS["timeout"]
        warnings.simplefilter("ignore", DeprecationWarning)

    def clients(self, blocking, waiting, url, key, **keys):
        blocking = blocking(base_url=url, api_key=key, **keys, **OPTIONS)
        self.addCleanup(blocking.close)
        waiting = waiting(base_url=url, api_key=key, **keys, **OPTIONS)
        self.addAsyncCleanup(waiting.close)
        return [blocking, waiting]

    def openai(self, key=KEY):
        url = f"{self.router.url}/v1"
        return self.clients(openai.OpenAI, openai.AsyncOpenAI, url, key, admin_api_key=key)

    def anthropic(self, key=KEY):
        return self.clients(anthropic.Anthropic, anthropic.AsyncAnthropic, self.router.url, key)

    def all(self, key=KEY):
        """Each client with its SDK and the table of its methods."""
        rows = [(client, openai, OPENAI) for client in self.openai(key)]
        return rows + [(client, anthropic, ANTHROPIC) for client in self.anthropic(key)]

    def check_body(self, sdk, error):
        """The error has the shape that its SDK expects, and says something."""
        if sdk is anthropic:
            self.assertEqual(error.body["type"], "error", error.body)
            inner = error.body["error"]
        else:
            inner = error.body
            self.assertNotIn("error", inner)
            self.assertEqual((error.code, error.type), (inner["code"], inner["type"]))
        self.assertEqual(set(inner), {"message", "type", "param", "code"})
        self.assertTrue(inner["message"] and inner["type"], inner)
        self.assertIn(inner["message"], str(error))
        return inner


class Served(Clients):
    async def test_what_engines_can_answer_is_answered(self):
        for client, _, table in self.all():
            for name, (arguments, holds) in table.items():
                with self.subTest(name, client=type(client).__name__):
                    answer = await await_if_needed(methods.method(client, name)(**arguments))
                    self.assertTrue(holds(answer), answer)

    async def test_chat_is_streamed_and_parsed(self):
        for client in self.openai():
            with self.subTest(type(client).__name__):
                request = {"model": MODEL, "messages": HELLO, "max_tokens": 5}
                chunks = await elements(client.chat.completions.create(**request, stream=True))
                words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
                self.assertEqual(len([word for word in words if word]), 5)
                parsed = await await_if_needed(client.chat.completions.parse(**request | {"max_tokens": None}))
                whole = await await_if_needed(client.chat.completions.create(**request))
                self.assertTrue(parsed.choices[0].message.content.startswith(whole.choices[0].message.content))
                legacy = await elements(client.completions.create(model=MODEL, prompt="x", max_tokens=5, stream=True))
                texts = [chunk.choices[0].text for chunk in legacy if chunk.choices]
                self.assertEqual("".join(texts), "".join(word for word in words if word))

    async def test_responses_are_streamed(self):
        for client in self.openai():
            with self.subTest(type(client).__name__):
                request = {"model": MODEL, "input": "Hello", "max_output_tokens": 5}
                events = await elements(client.responses.create(**request, stream=True))
                self.assertEqual((events[0].type, events[-1].type), ("response.created", "response.completed"))
                text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                self.assertEqual(text, events[-1].response.output_text)
                stored = await await_if_needed(client.responses.retrieve(events[-1].response.id))
                self.assertEqual(stored.output_text, text)

    async def test_transcriptions_and_speech_are_streamed(self):
        for client in self.openai():
            with self.subTest(type(client).__name__):
                request = {"model": MODEL, "file": SOUND}
                events = await elements(client.audio.transcriptions.create(**request, stream=True))
                text = "".join(event.delta for event in events if event.type == "transcript.text.delta")
                whole = await await_if_needed(client.audio.transcriptions.create(**request))
                self.assertEqual((text, events[-1].text), (whole.text, whole.text))
        blocking, waiting = self.openai()
        request = {"model": MODEL, "input": "sound " * 1000, "voice": "alloy"}
        with blocking.audio.speech.with_streaming_response.create(**request) as answer:
            self.assertEqual(b"".join(answer.iter_bytes()).decode(), request["input"])
        async with waiting.audio.speech.with_streaming_response.create(**request) as answer:
            self.assertEqual(b"".join([piece async for piece in answer.iter_bytes()]).decode(), request["input"])

    async def test_messages_are_streamed(self):
        request = {"model": MODEL, "messages": HELLO, "max_tokens": 5}
        blocking, waiting = self.anthropic()
        with blocking.messages.stream(**request) as stream:
            words = list(stream.text_stream)
            final = stream.get_final_message()
        async with waiting.messages.stream(**request) as stream:
            self.assertEqual([word async for word in stream.text_stream], words)
            self.assertEqual((await stream.get_final_message()).content[0].text, "".join(words))
        self.assertEqual((len(words), final.usage.output_tokens, final.stop_reason), (5, 5, "max_tokens"))
        for client in self.anthropic():
            events = await elements(client.messages.create(**request, stream=True))
            deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
            self.assertEqual((deltas, events[-1].type), (words, "message_stop"))

    async def test_a_stored_response_is_retrieved_and_deleted(self):
        for client in self.openai():
            # Both workers have some of them, whatever the policy does.
            for number in range(8):
                with self.subTest(type(client).__name__, number=number):
                    made = await await_if_needed(client.responses.create(model=MODEL, input=f"{number} " * 500))
                    found = await await_if_needed(client.responses.retrieve(made.id))
                    self.assertEqual(found.to_dict(), made.to_dict())
                    with self.assertRaises(openai.BadRequestError):
                        await await_if_needed(client.responses.cancel(made.id))
                    await await_if_needed(client.responses.delete(made.id))
                    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
                        with self.assertRaises(openai.NotFoundError) as caught:
                            await await_if_needed(call(made.id))
                        self.assertEqual(caught.exception.code, "response_not_found")

    async def test_a_response_in_the_background_is_cancelled(self):
        for client in self.openai():
            with self.subTest(type(client).__name__):
                request = {"model": MODEL, "input": "Hello", "background": True}
                made = await await_if_needed(client.responses.create(**request, extra_headers=script(stall_after_chunks=0)))
                self.assertEqual(made.status, "queued")
                self.assertEqual((await await_if_needed(client.responses.retrieve(made.id))).status, "in_progress")
                self.assertEqual((await await_if_needed(client.responses.cancel(made.id))).status, "cancelled")
                self.assertEqual((await await_if_needed(client.responses.retrieve(made.id))).status, "cancelled")
                made = await await_if_needed(client.responses.create(**request))
                done = await await_if_needed(client.responses.retrieve(made.id))
                self.assertEqual(done.status, "completed")
                self.assertTrue(done.output_text)


class Refused(Clients):
    async def test_every_other_method_is_refused_with_a_typed_error(self):
        named = set()
        for client, sdk, table in self.all():
            others = [name for name in methods.names(client) if name not in table | STREAMED]
            self.assertGreater(len(others), 100, "the methods of the SDK are found")
            for name in others:
                with self.subTest(name, client=type(client).__name__):
                    arguments = methods.arguments(client, name)
                    with self.assertRaises(sdk.APIStatusError) as caught:
                        # A list with pages sends its request when it is awaited or read.
                        await await_if_needed(methods.method(client, name)(**arguments))
                    error = caught.exception
                    inner = self.check_body(sdk, error)
                    self.assertIn(inner["code"], REFUSED.get(error.status_code, ()), error)
                    self.assertEqual(isinstance(error, sdk.NotFoundError), error.status_code == 404)
                    if name in NAMED:
                        named.add(name)
                        self.assertEqual(inner["code"], "not_supported")
                        self.assertIn(f"{NAMED[name]} are not supported", inner["message"])
        self.assertEqual(named, set(NAMED), "all of these are methods of an SDK")


class Errors(Clients):
    async def test_a_wrong_key_is_an_authentication_error_on_every_method(self):
        for client, sdk, table in self.all("wrong"):
            for name, (arguments, _) in table.items():
                with self.subTest(name, client=type(client).__name__):
                    with self.assertRaises(sdk.AuthenticationError) as caught:
                        await await_if_needed(methods.method(client, name)(**arguments))
                    inner = self.check_body(sdk, caught.exception)
                    self.assertEqual((inner["type"], inner["code"]), ("authentication_error", "invalid_api_key"))

    async def test_an_unknown_model_is_not_found_on_every_method(self):
        for client, sdk, table in self.all():
            for name, (arguments, _) in table.items():
                field = next((field for field in ("model", "model_id") if field in arguments), None)
                if field is None:
                    continue
                with self.subTest(name, client=type(client).__name__):
                    with self.assertRaises(sdk.NotFoundError) as caught:
                        await await_if_needed(methods.method(client, name)(**arguments | {field: "none"}))
                    inner = self.check_body(sdk, caught.exception)
                    self.assertEqual((inner["code"], inner["param"]), ("model_not_found", "model"))
                    self.assertIn("none", inner["message"])

    async def test_a_status_of_a_worker_is_the_sdks_error_on_every_method(self):
        expected = {
            400: "BadRequestError",
            403: "PermissionDeniedError",
            422: "UnprocessableEntityError",
            429: "RateLimitError",
            500: "InternalServerError",
            503: "InternalServerError",
        }
        for client, sdk, table in self.all():
            for name, (arguments, _) in table.items():
                # The router answers these itself.
                if "models." in name:
                    continue
                for status, kind in expected.items():
                    with self.subTest(name, client=type(client).__name__, status=status):
                        with self.assertRaises(getattr(sdk, kind)) as caught:
                            headers = script(status=status, retry_after=7)
                            await await_if_needed(methods.method(client, name)(**arguments, extra_headers=headers))
                        self.assertEqual(caught.exception.status_code, status)
                        self.assertEqual(caught.exception.response.headers["retry-after"], "7")
                        self.assertIn("failed by script", str(caught.exception))

    async def test_a_stream_that_breaks_raises(self):
        broken = {"extra_headers": script(cut_after_chunks=3), "stream": True}
        for client in self.openai():
            for name in ("chat.completions.create", "completions.create", "responses.create"):
                with self.subTest(name, client=type(client).__name__), self.assertRaises(openai.APIError) as caught:
                    await elements(methods.method(client, name)(**OPENAI[name][0] | broken))
                self.assertEqual(caught.exception.code, "upstream_stream_broken")
        for client in self.anthropic():
            with self.subTest(type(client).__name__), self.assertRaises(anthropic.APIError) as caught:
                await elements(client.messages.create(**ANTHROPIC["messages.create"][0] | broken))
            self.assertEqual(caught.exception.body["error"]["code"], "upstream_stream_broken")


class Limits(Clients):
    @classmethod
    def setUpClass(cls):
        workers, urls = mock_workers(1)
        cls.addClassCleanup(workers.stop)
        flags = ["--max-concurrent-requests", "1", "--queue-size", "0", "--max-payload-size", "4096"]
        cls.router = Router(urls, "--disable-retries", *flags)
        cls.addClassCleanup(cls.router.stop)

    async def test_a_full_queue_is_a_rate_limit_error(self):
        with openai.OpenAI(base_url=f"{self.router.url}/v1", api_key=KEY, **OPTIONS) as first:
            stalled = first.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, extra_headers=script(stall_after_chunks=1)
            )
            next(stalled)
            for client, sdk, table in self.all():
                for name, (arguments, _) in table.items():
                    if "models." in name:
                        continue
                    with self.subTest(name, client=type(client).__name__):
                        with self.assertRaises(sdk.RateLimitError) as caught:
                            await await_if_needed(methods.method(client, name)(**arguments))
                        inner = self.check_body(sdk, caught.exception)
                        self.assertEqual(inner["code"], "too_many_requests")
                        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
            stalled.close()

    async def test_a_body_that_is_too_large_is_a_status_error(self):
        large = [{"role": "user", "content": "x" * 5000}]
        for client in self.openai():
            with self.subTest(type(client).__name__), self.assertRaises(openai.APIStatusError) as caught:
                await await_if_needed(client.chat.completions.create(model=MODEL, messages=large))
            self.assertEqual(self.check_body(openai, caught.exception)["code"], "payload_too_large")
        for client in self.anthropic():
            with self.subTest(type(client).__name__), self.assertRaises(anthropic.APIStatusError) as caught:
                await await_if_needed(client.messages.create(model=MODEL, messages=large, max_tokens=1))
            self.assertEqual(self.check_body(anthropic, caught.exception)["code"], "payload_too_large")
            self.assertEqual(caught.exception.status_code, 413)


class Nobody(Clients):
    @classmethod
    def setUpClass(cls):
        workers, urls = mock_workers(1)
        cls.addClassCleanup(workers.stop)
        cls.router = Router(urls, "--disable-retries")
        cls.addClassCleanup(cls.router.stop)
        worker = cls.router.get("/workers")["workers"][0]["id"]
        verdict = {"healthy": False, "reason": "the SDK tests want to see a 503"}
        cls.router.ask("POST", f"/workers/{worker}/override", verdict)

    async def test_no_ready_worker_is_a_503_on_every_method(self):
        for client, sdk, table in self.all():
            for name, (arguments, _) in table.items():
                if "models." in name:
                    continue
                with self.subTest(name, client=type(client).__name__):
                    with self.assertRaises(sdk.InternalServerError) as caught:
                        await await_if_needed(methods.method(client, name)(**arguments))
                    inner = self.check_body(sdk, caught.exception)
                    self.assertEqual((caught.exception.status_code, inner["code"]), (503, "no_available_workers"))
                    self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)


if __name__ == "__main__":
    unittest.main()
