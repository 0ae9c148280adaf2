"""Conversations of coding agents, in the shapes of their requests: Claude Code (Anthropic Messages) and Codex (OpenAI Responses).

Each turn repeats the whole conversation so far, with tools, thinking and tool results. What the model really says is
not used: the assistant's part of the history is written here, as an agent would have it from a model that works.
"""

import base64
import json
import uuid

# One transparent pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
COMMAND = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def project(number):
    """The name of a conversation's project, which is the first that tells its prompt from others."""
    return f"project-{number:02}-{uuid.UUID(int=number * 7919)}"


class ClaudeCode:
    """One conversation of Claude Code. The first line of its system prompt is different in each request."""

    def __init__(self, number, model, with_image=False):
        self.number = number
        self.model = model
        self.turns = 0
        self.messages = []
        self.session = uuid.UUID(int=number + 1)
        self.with_image = with_image

    def request(self):
        """The next turn's request."""
        self._add_turn()
        # Five hexadecimal digits that no two requests have in common.
        nonce = f"{(self.number * 1000 + self.turns) * 31 % 0x100000:05x}"
        line = f"x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch={nonce};"
        name = project(self.number)
        return {
            "model": self.model,
            "max_tokens": 4,
            "system": [
                {"type": "text", "text": line},
                {
                    "type": "text",
                    "text": f"You are a coding agent. You work on {name}. Be brief.",
                    "cache_control": {"type": "ephemeral"},
                },
            ],
            "tools": [
                {"name": "Read", "description": f"Reads a file of {name}.", "input_schema": PATH},
                {"name": "Bash", "description": "Runs a command.", "input_schema": COMMAND},
            ],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": f"user_0_account__session_{self.session}"},
            "messages": self.messages,
        }

    def _add_turn(self):
        turn = self.turns
        self.turns += 1
        if turn == 0:
            content = [{"type": "text", "text": f"Find the bug in {project(self.number)}."}]
            if self.with_image:
                source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
                content.append({"type": "image", "source": source})
            self.messages.append({"role": "user", "content": content})
            return
        call = f"toolu_{self.number:02}{turn:03}"
        thinking = {"type": "thinking", "thinking": f"File {turn} next.", "signature": signature(self.number, turn)}
        use = {"type": "tool_use", "id": call, "name": "Read", "input": {"path": f"src/{turn}.rs"}}
        result = {"type": "tool_result", "tool_use_id": call, "content": f"line {turn} of {self.number}"}
        self.messages.append({"role": "assistant", "content": [thinking, {"type": "text", "text": "I look."}, use]})
        self.messages.append({"role": "user", "content": [result]})


class Codex:
    """One conversation of Codex. It stores nothing at the engine, and sends its reasoning back."""

    def __init__(self, number, model, with_image=False):
        self.number = number
        self.model = model
        self.turns = 0
        self.input = []
        self.session = uuid.UUID(int=number + 1)
        self.with_image = with_image

    def request(self):
        """The next turn's request."""
        self._add_turn()
        name = project(self.number)
        return {
            "model": self.model,
            "max_output_tokens": 4,
            "instructions": f"You are a coding agent. You work on {name}. Be brief.",
            "tools": [
                {"type": "function", "name": "read", "description": f"Reads a file of {name}.", "parameters": PATH, "strict": False},
                {"type": "function", "name": "shell", "description": "Runs a command.", "parameters": COMMAND, "strict": False},
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "store": False,
            "prompt_cache_key": str(self.session),
            "input": self.input,
        }

    def _add_turn(self):
        turn = self.turns
        self.turns += 1
        if turn == 0:
            content = [{"type": "input_text", "text": f"Find the bug in {project(self.number)}."}]
            if self.with_image:
                content.append({"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"})
            self.input.append({"type": "message", "role": "user", "content": content})
            return
        call = f"call_{self.number:02}{turn:03}"
        self.input += [
            {
                "type": "reasoning",
                "id": f"rs_{self.number:02}{turn:03}",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": f"File {turn} next."}],
                "encrypted_content": signature(self.number, turn),
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {
                "type": "function_call",
                "call_id": call,
                "name": "read",
                "arguments": json.dumps({"path": f"src/{turn}.rs"}),
            },
            {"type": "function_call_output", "call_id": call, "output": f"line {turn} of {self.number}"},
        ]


def signature(number, turn):
    """What stands for a thought's signature or its encrypted text."""
    return base64.b64encode(f"thought {turn} of {number}".encode()).decode()
