"""The anthropic SDK, as its users use it, against the router and two mock workers."""

import unittest

import anthropic
from support import Router, mock_workers, script

MODEL = "mock-model"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]
KEY = "client-key"


def client(router, key=KEY):
    # It shows its key as x-api-key.
    return anthropic.Anthropic(base_url=router.url, api_key=key, max_retries=0, timeout=30)


class Anthropic(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workers, urls = mock_workers(2)
        cls.addClassCleanup(cls.workers.stop)
        cls.router = Router(urls, "--api-key", KEY, "--disable-retries")
        cls.addClassCleanup(cls.router.stop)
        cls.client = client(cls.router)
        cls.addClassCleanup(cls.client.close)

    def test_messages(self):
        answer = self.client.messages.create(model=MODEL, messages=HELLO, max_tokens=5)
        self.assertEqual((answer.type, answer.role), ("message", "assistant"))
        self.assertTrue(answer.content[0].text)
        self.assertEqual(answer.usage.output_tokens, 5)

    def test_messages_streamed(self):
        whole = self.client.messages.create(model=MODEL, messages=HELLO, max_tokens=6)
        with self.client.messages.stream(model=MODEL, messages=HELLO, max_tokens=6) as stream:
            words = list(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual("".join(words), whole.content[0].text)
        self.assertEqual(final.usage.output_tokens, 6)
        self.assertEqual(final.stop_reason, whole.stop_reason)

    def test_a_wrong_key_is_an_authentication_error(self):
        with client(self.router, "wrong") as wrong, self.assertRaises(anthropic.AuthenticationError) as caught:
            wrong.messages.create(model=MODEL, messages=HELLO, max_tokens=5)
        self.assertEqual(caught.exception.status_code, 401)
        self.assertEqual(caught.exception.body["type"], "error")
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")

    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            self.client.messages.create(model="no-such-model", messages=HELLO, max_tokens=5)
        self.assertEqual(caught.exception.body["error"]["code"], "model_not_found")

    def test_a_model_of_a_wrong_type_is_a_bad_request(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.client.messages.create(model=7, messages=HELLO, max_tokens=5)
        self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")

    def test_a_workers_own_errors_keep_their_types(self):
        expected = [(429, anthropic.RateLimitError), (500, anthropic.InternalServerError)]
        for status, kind in expected:
            with self.subTest(status), self.assertRaises(kind) as caught:
                self.client.messages.create(
                    model=MODEL, messages=HELLO, max_tokens=5, extra_headers=script(status=status)
                )
            self.assertEqual(caught.exception.status_code, status)

    def test_a_worker_that_hangs_up_is_an_api_status_error(self):
        with self.assertRaises(anthropic.APIStatusError) as caught:
            self.client.messages.create(
                model=MODEL, messages=HELLO, max_tokens=5, extra_headers=script(garbage=True)
            )
        self.assertEqual(caught.exception.status_code, 502)

    def test_a_stream_that_breaks_raises(self):
        seen = []
        with self.assertRaises(anthropic.APIError):
            with self.client.messages.stream(
                model=MODEL, messages=HELLO, max_tokens=9, extra_headers=script(cut_after_chunks=3)
            ) as stream:
                seen.extend(stream.text_stream)
        self.assertEqual(len(seen), 3, "what came before the break was delivered")


if __name__ == "__main__":
    unittest.main()
