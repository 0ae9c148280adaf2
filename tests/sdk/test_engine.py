"""A real engine behind the router: multi-turn conversations over two llama-servers stay where their cache is.

The judge is the engine itself: its `cached_tokens`.
"""

import unittest

import openai
from engines import TwoEngines

# A new conversation goes to either of two idle engines by chance: that all go to one has a chance of 1 in 1,024.
CONVERSATIONS = 11
TURNS = 5


class Engine(TwoEngines):
    def router(self, *flags):
        router = self.start_router(*flags)
        client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.addCleanup(client.close)
        return client

    def converse(self, client):
        """Interleaved conversations; of each turn who served it, its prompt's tokens and those from the cache."""
        histories = [
            [{"role": "system", "content": f"{user} is the number of this conversation. " * 12}]
            for user in range(CONVERSATIONS)
        ]
        turns = [[] for _ in histories]
        for turn in range(TURNS):
            for user, history in enumerate(histories):
                history.append({"role": "user", "content": f"This is question {turn} of user {user}."})
                raw = client.chat.completions.with_raw_response.create(
                    model="tiny", messages=history, max_tokens=16, temperature=0
                )
                answer = raw.parse()
                usage = answer.usage
                cached = usage.prompt_tokens_details.cached_tokens
                turns[user].append((raw.headers["x-smg-worker"], usage.prompt_tokens, cached))
                # Plain letters: what random weights say need not come back as the same tokens.
                history.append({"role": "assistant", "content": f"answer {turn}"})
        return turns

    def test_conversations_stay_where_their_cache_is(self):
        turns = self.converse(self.router())
        for user, conversation in enumerate(turns):
            workers = {worker for worker, _, _ in conversation}
            self.assertEqual(len(workers), 1, f"conversation {user} moved: {conversation}")
            for (_, before, _), (_, prompt, cached) in zip(conversation, conversation[1:]):
                # All of the previous prompt is there, but for the template's end of the last message.
                self.assertGreaterEqual(cached, 0.9 * before, f"{cached} of {prompt} after {before}: {conversation}")
        served = {conversation[0][0] for conversation in turns}
        self.assertEqual(len(served), 2, "both engines have work")

    def test_the_judge_can_say_no(self):
        """With turns dealt out in turn, the engine itself reports less from its cache: the test above can fail."""
        share = lambda turns: sum(c for t in turns for _, _, c in t[1:]) / sum(p for t in turns for _, p, _ in t[1:])
        # Four conversations in turn over two workers would stay by accident; an odd number does not.
        dealt = share(self.converse(self.router("--policy", "random")))
        self.assertLess(dealt, 0.9)

    def test_streams_models_and_errors(self):
        client = self.router()
        messages = [{"role": "user", "content": "Say something."}]
        stream = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        self.assertLessEqual(chunks[-1].usage.completion_tokens, 8)
        self.assertGreater(len(chunks), 2, "it came in pieces")
        self.assertEqual([model.id for model in client.models.list()], ["tiny"])
        answer = client.completions.create(model="tiny", prompt="Once", max_tokens=4)
        self.assertLessEqual(answer.usage.completion_tokens, 4)
        with self.assertRaises(openai.NotFoundError):
            client.chat.completions.create(model="another", messages=messages)
        with self.assertRaises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages="no list")


if __name__ == "__main__":
    unittest.main()
