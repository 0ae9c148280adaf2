"""Coding agents before two mock workers: 60 turns with tools, thinking, an image and, for Claude Code, a first line that changes.

`test_engine_agents.py` plays the same conversations to real engines, which take no image with a model for text only.
"""

import unittest

import anthropic
import openai
from agents import ClaudeCode, Codex
from support import Router, mock_workers

MODEL = "mock-model"
TURNS = 60
# A new conversation goes to either of two idle workers by chance: that all go to one has a chance of 1 in 16,384.
CONVERSATIONS = 15


class Agents(unittest.TestCase):
    def setUp(self):
        workers, urls = mock_workers(2)
        self.addCleanup(workers.stop)
        self.router = Router(urls)
        self.addCleanup(self.router.stop)

    def check(self, agents, ask):
        """Plays all turns: each conversation must stay at one worker, where its prefix is if the mock worker says."""
        served = [set() for _ in agents]
        for turn in range(TURNS):
            for agent in agents:
                raw, prompt, cached = ask(agent.request())
                served[agent.number].add(raw.headers["x-mock-worker"])
                if turn > 0 and cached is not None:
                    # All but the new turn, which is a large part of a short conversation.
                    self.assertGreater(cached / prompt, 0.5 if turn < 8 else 0.85, f"turn {turn} of {agent.number}")
        self.assertEqual({len(workers) for workers in served}, {1}, f"a conversation moved: {served}")
        self.assertEqual(len(set.union(*served)), 2, "both workers have work")

    def test_responses(self):
        client = openai.OpenAI(base_url=f"{self.router.url}/v1", api_key="none", max_retries=0, timeout=30)
        self.addCleanup(client.close)

        def ask(request):
            raw = client.responses.with_raw_response.create(**request)
            usage = raw.parse().usage
            return raw, usage.input_tokens, usage.input_tokens_details.cached_tokens

        self.check([Codex(number, MODEL, with_image=True) for number in range(CONVERSATIONS)], ask)

    def test_messages(self):
        client = anthropic.Anthropic(base_url=self.router.url, api_key="none", max_retries=0, timeout=30)
        self.addCleanup(client.close)

        def ask(request):
            # Unlike an engine, a mock worker does not leave the changing line out of what it caches.
            return client.messages.with_raw_response.create(**request), None, None

        self.check([ClaudeCode(number, MODEL, with_image=True) for number in range(CONVERSATIONS)], ask)


if __name__ == "__main__":
    unittest.main()
