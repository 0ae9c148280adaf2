"""Coding agents before two real engines: many turns with tools, thinking and, for Claude Code, a first line that changes.

Each conversation stays at the engine that has its prefix. The judge is the engine itself: what it says it took from its
cache. `test_sdk_agents.py` plays the same conversations with an image, which a model for text only does not take.
"""

import os
import unittest

import anthropic
import openai
from agents import ClaudeCode, Codex
from engines import TwoEngines

# SMG_ENGINE_TURNS=60 plays as many as test_sdk_agents.py.
TURNS = int(os.environ.get("SMG_ENGINE_TURNS", "30"))
# As many conversations stay at each engine.
PER_ENGINE = 2
# A new conversation goes to either of two idle engines by chance. That fewer than two of so many go to one of them has a
# chance of 1 in 300,000.
MOST_CONVERSATIONS = 24
# A template as those of models for agents: tools, thinking, calls and results are part of the prompt.
TEMPLATE = """
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>
{% endif %}{% if message.content %}{{ message.content }}{% endif %}
{%- if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""


class Agents(TwoEngines):
    # Room for all conversations in each engine, whatever the router does.
    FLAGS = ("-c", str(8 * 16384), "-np", "8", "--jinja", "--chat-template", TEMPLATE)

    def check(self, router, agents, ask):
        """Begins conversations until each engine has some, and plays all turns of these."""
        homes = {}
        chosen = []
        for agent in agents:
            headers, _, _ = ask(agent.request())
            worker = headers["x-smg-worker"]
            if len(homes.setdefault(worker, [])) < PER_ENGINE:
                homes[worker].append(agent)
                chosen.append((agent, worker))
            if len(chosen) == 2 * PER_ENGINE:
                break
        self.assertEqual({worker: len(own) for worker, own in homes.items()}, dict.fromkeys(homes, PER_ENGINE))
        self.assertEqual(len(homes), 2, "both engines have work")
        for turn in range(1, TURNS):
            for agent, home in chosen:
                headers, prompt, cached = ask(agent.request())
                shown = {name: value for name, value in headers.items() if name.startswith("x-smg-")}
                warnings = [line for line in router.lines if '"WARN"' in line][-5:]
                self.assertEqual(shown["x-smg-worker"], home, f"conversation {agent.number}, turn {turn}: {shown} {warnings}")
                least = 0.6 if turn < 8 else 0.9
                self.assertGreater(cached, least * prompt, f"cache of conversation {agent.number} in turn {turn}, {prompt}")

    def test_responses(self):
        router = self.start_router()
        client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.addCleanup(client.close)

        def ask(request):
            raw = client.responses.with_raw_response.create(**request)
            usage = raw.parse().usage
            return raw.headers, usage.input_tokens, usage.input_tokens_details.cached_tokens

        self.check(router, [Codex(number, "tiny") for number in range(MOST_CONVERSATIONS)], ask)

    def test_messages(self):
        router = self.start_router()
        client = anthropic.Anthropic(base_url=router.url, api_key="none", max_retries=0, timeout=120)
        self.addCleanup(client.close)

        def ask(request):
            raw = client.messages.with_raw_response.create(**request)
            usage = raw.parse().usage
            cached = usage.cache_read_input_tokens
            return raw.headers, usage.input_tokens + cached, cached

        self.check(router, [ClaudeCode(number, "tiny") for number in range(MOST_CONVERSATIONS)], ask)


if __name__ == "__main__":
    unittest.main()
