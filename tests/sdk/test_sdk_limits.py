"""Limits as the openai and anthropic SDKs see them: typed errors, and clients that wait as they are told."""

import json
import time
import unittest
import urllib.request

import anthropic
import openai
from support import Router, mock_workers

MESSAGES = [{"role": "user", "content": "hello"}]


class Limits(unittest.TestCase):
    def setUp(self):
        workers, urls = mock_workers(1)
        self.addCleanup(workers.stop)
        self.router = Router(urls)
        self.addCleanup(self.router.stop)
        self.openai = openai.OpenAI(base_url=f"{self.router.url}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.openai.close)
        self.anthropic = anthropic.Anthropic(base_url=self.router.url, api_key="none", max_retries=0)
        self.addCleanup(self.anthropic.close)

    def limit(self, **rule):
        request = urllib.request.Request(f"{self.router.url}/ha/rate-limits/test", json.dumps(rule).encode(), method="PUT")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            self.assertEqual(json.load(answer)["id"], "test")

    def chat(self, client):
        return client.chat.completions.create(model="mock-model", messages=MESSAGES, max_tokens=2)

    def test_a_rate_is_a_typed_error_with_the_time_to_wait(self):
        self.limit(requests=1, window="1h")
        self.chat(self.openai)
        with self.assertRaises(openai.RateLimitError) as refused:
            self.chat(self.openai)
        self.assertEqual(refused.exception.code, "rate_limit_exceeded")
        headers = refused.exception.response.headers
        self.assertTrue(1 <= int(headers["retry-after"]) <= 3600)
        self.assertEqual(headers["x-ratelimit-remaining-requests"], "0")
        with self.assertRaises(anthropic.RateLimitError) as refused:
            self.anthropic.messages.create(model="mock-model", messages=MESSAGES, max_tokens=2)
        self.assertEqual(refused.exception.body["error"]["type"], "rate_limit_error")

    def test_a_used_quota_of_a_day_has_the_code_of_openai(self):
        self.limit(requests=1, window="1d")
        self.chat(self.openai)
        with self.assertRaises(openai.RateLimitError) as refused:
            self.chat(self.openai)
        self.assertEqual(refused.exception.code, "insufficient_quota")

    def test_clients_wait_as_they_are_told_and_succeed(self):
        self.limit(requests=1, window="2s")
        patient = self.openai.with_options(max_retries=3)
        began = time.monotonic()
        for _ in range(3):
            self.assertTrue(self.chat(patient).choices)
        # Three requests, one in each window of two seconds.
        self.assertTrue(2 <= time.monotonic() - began < 30)

    def test_tokens_of_streams_are_counted_and_not_shown(self):
        self.limit(tokens=100000, window="1h")
        stream = self.openai.chat.completions.create(model="mock-model", messages=MESSAGES, max_tokens=5, stream=True)
        self.assertTrue(all(chunk.usage is None for chunk in stream))
        stats = self.router.get("/ha/rate-limit/stats")
        used = lambda: self.router.get("/ha/rate-limit/stats")["rules"][0]["limits"][0]["subjects"][0]["used"]  # noqa: E731
        self.assertEqual(stats["rules"][0]["id"], "test")
        deadline = time.monotonic() + 5
        while not 0 < used() < 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertTrue(0 < used() < 100, used())


if __name__ == "__main__":
    unittest.main()
