"""The openai SDK, as its users use it, against the router and two mock workers."""

import threading
import unittest

import openai
from support import Router, eventually, mock_workers, script

MODEL = "mock-model"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]
KEY = "client-key"
ADMIN = "admin-key"


def client(router, key=KEY):
    return openai.OpenAI(base_url=f"{router.url}/v1", api_key=key, max_retries=0, timeout=30)


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workers, urls = mock_workers(2)
        cls.addClassCleanup(cls.workers.stop)
        cls.router = Router(urls, "--api-key", KEY, "--admin-api-key", ADMIN, "--disable-retries")
        cls.addClassCleanup(cls.router.stop)
        cls.client = client(cls.router)
        cls.addClassCleanup(cls.client.close)

    def test_chat(self):
        answer = self.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, MODEL)
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.completion_tokens, 5)
        self.assertGreater(answer.usage.prompt_tokens, 0)

    def test_chat_streamed(self):
        stream = self.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        self.assertEqual(len(words), 7)
        whole = self.client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7)
        self.assertEqual("".join(words), whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, 7)
        finished = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        self.assertEqual(finished, ["length"])

    def test_completions(self):
        answer = self.client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=3)
        self.assertEqual((answer.object, answer.usage.completion_tokens), ("text_completion", 3))
        stream = self.client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=3, stream=True)
        text = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
        self.assertEqual(text, answer.choices[0].text)

    def test_responses(self):
        answer = self.client.responses.create(model=MODEL, input="Hello", max_output_tokens=4)
        self.assertEqual((answer.object, answer.status), ("response", "completed"))
        self.assertTrue(answer.output_text)
        events = list(self.client.responses.create(model=MODEL, input="Hello", max_output_tokens=4, stream=True))
        self.assertEqual(events[0].type, "response.created")
        self.assertEqual(events[-1].type, "response.completed")
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual(text, answer.output_text)

    def test_embeddings(self):
        answer = self.client.embeddings.create(model=MODEL, input=["one", "two"])
        self.assertEqual([each.index for each in answer.data], [0, 1])
        self.assertEqual(len(answer.data[0].embedding), len(answer.data[1].embedding))
        self.assertNotEqual(answer.data[0].embedding, answer.data[1].embedding)
        plain = self.client.embeddings.create(model=MODEL, input="one", encoding_format="float")
        self.assertEqual(plain.data[0].embedding, answer.data[0].embedding)

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([model.id for model in models], [MODEL], "two workers with one model are one model")
        self.assertEqual(models[0].object, "model")

    def test_a_wrong_key_is_an_authentication_error(self):
        with client(self.router, "wrong") as wrong, self.assertRaises(openai.AuthenticationError) as caught:
            wrong.chat.completions.create(model=MODEL, messages=HELLO)
        self.assertEqual((caught.exception.status_code, caught.exception.code), (401, "invalid_api_key"))

    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="no-such-model", messages=HELLO)
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        self.assertIn("no-such-model", caught.exception.message)
        self.assertTrue(caught.exception.request_id)

    def test_a_model_of_a_wrong_type_is_a_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=7, messages=HELLO)
        self.assertEqual((caught.exception.code, caught.exception.param), ("invalid_json", "model"))

    def test_a_workers_own_errors_keep_their_types(self):
        expected = [
            (400, openai.BadRequestError),
            (403, openai.PermissionDeniedError),
            (422, openai.UnprocessableEntityError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
        ]
        for status, kind in expected:
            with self.subTest(status), self.assertRaises(kind) as caught:
                self.client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=script(status=status))
            self.assertEqual(caught.exception.status_code, status)

    def test_a_worker_that_hangs_up_is_a_502(self):
        with self.assertRaises(openai.InternalServerError) as caught:
            self.client.chat.completions.create(
                model=MODEL, messages=HELLO, extra_headers=script(cut_before_head=True)
            )
        self.assertEqual((caught.exception.status_code, caught.exception.code), (502, "upstream_connection_failed"))

    def test_a_stream_that_breaks_raises(self):
        seen = []
        stream = self.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=9, stream=True, extra_headers=script(cut_after_chunks=3)
        )
        with self.assertRaises(openai.APIError) as caught:
            for chunk in stream:
                seen += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        self.assertEqual(len(seen), 3, "what came before the break was delivered")
        self.assertEqual(caught.exception.code, "upstream_stream_broken")

    def test_nobody_ready_is_a_503(self):
        workers = self.router.ask("GET", "/workers", key=ADMIN)["workers"]
        verdict = {"healthy": False, "reason": "the SDK tests want to see a 503"}
        for worker in workers:
            path = f"/workers/{worker['id']}/override"
            self.router.ask("POST", path, verdict, key=ADMIN)
            self.addCleanup(self.router.ask, "DELETE", path, key=ADMIN)
        with self.assertRaises(openai.InternalServerError) as caught:
            self.client.chat.completions.create(model=MODEL, messages=HELLO)
        self.assertEqual((caught.exception.status_code, caught.exception.code), (503, "no_available_workers"))
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)


class Full(unittest.TestCase):
    def test_a_full_queue_is_a_rate_limit_error(self):
        workers, urls = mock_workers(1)
        self.addCleanup(workers.stop)
        router = Router(urls, "--max-concurrent-requests", "1", "--queue-size", "0")
        self.addCleanup(router.stop)
        with client(router) as first, client(router) as second:
            stalled = first.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, extra_headers=script(stall_after_chunks=1)
            )
            next(stalled)
            with self.assertRaises(openai.RateLimitError) as caught:
                second.chat.completions.create(model=MODEL, messages=HELLO)
            self.assertEqual(caught.exception.code, "too_many_requests")
            self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
            stalled.close()
            # The one that left has given its place back.
            eventually(lambda: router.get("/workers")["workers"][0]["in_flight"] == 0, "the place is free")
            answer = second.chat.completions.create(model=MODEL, messages=HELLO)
            self.assertTrue(answer.choices[0].message.content)


class Crowd(unittest.TestCase):
    def test_many_clients_at_once(self):
        workers, urls = mock_workers(3)
        self.addCleanup(workers.stop)
        router = Router(urls)
        self.addCleanup(router.stop)
        failures = []

        def talk(user):
            try:
                with client(router) as own:
                    history = [{"role": "system", "content": f"You talk with user {user}. " * 20}]
                    for turn in range(4):
                        history.append({"role": "user", "content": f"question {turn}"})
                        stream = own.chat.completions.create(model=MODEL, messages=history, stream=True)
                        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
                        assert text, "an empty answer"
                        history.append({"role": "assistant", "content": text})
            except Exception as error:  # The test reports the failures of its threads.
                failures.append(repr(error))

        threads = [threading.Thread(target=talk, args=(user,)) for user in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
