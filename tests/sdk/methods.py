"""The methods of an SDK's client: finding those that send a request, and calling them whether the client is async or not."""

import functools
import inspect
import operator
import re

# A method that sends its own request calls one of these. Those that only combine others (polling, parsing) do not.
SENDS = re.compile(r"self\._(get|post|put|patch|delete|get_api_list)\(")
# Default arguments for required parameters, by name. Any other gets a text.
MADE_UP = {
    "file": ("file.txt", b"text", "text/plain"),
    "files": [("file.txt", b"text", "text/plain")],
    "data": b"bytes",
    "recording": ("voice.wav", b"RIFF", "audio/wav"),
    "image": ("image.png", b"\x89PNG", "image/png"),
    "max_tokens": 1,
    "messages": [{"role": "user", "content": "Hello"}],
    "video": ("video.mp4", b"video", "video/mp4"),
    "audio_sample": ("voice.wav", b"RIFF", "audio/wav"),
    "archive": ("archive.zip", b"PK", "application/zip"),
}


def names(client):
    """The names of all methods that send one request, such as `chat.completions.create`."""
    found = []

    def walk(resource, prefix):
        for name in dir(type(resource)):
            attribute = inspect.getattr_static(type(resource), name)
            if name.startswith(("_", "with_")):
                continue
            if isinstance(attribute, (property, functools.cached_property)):
                part = getattr(resource, name)
                if hasattr(type(part), "with_raw_response"):
                    walk(part, f"{prefix}{name}.")
            elif inspect.isfunction(attribute) and prefix:
                if SENDS.search(inspect.getsource(inspect.unwrap(attribute))):
                    found.append(prefix + name)

    walk(client, "")
    return found


def method(client, name):
    """The method called `name` of a client."""
    return operator.attrgetter(name)(client)


def arguments(client, name):
    """Made-up arguments for the parameters that a method requires."""
    found = method(client, name)
    parameters = inspect.signature(found).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = {each.name for each in parameters if each.default is each.empty and each.kind in named}
    # A method with several sets of required parameters checks them in a wrapper.
    variants = inspect.getclosurevars(found.__func__).nonlocals.get("variants")
    required.update(variants[0] if variants else ())
    return {parameter: MADE_UP.get(parameter, "x") for parameter in required}


async def await_if_needed(value):
    """A result: a coroutine is awaited, others stay as they are."""
    if inspect.isawaitable(value):
        value = await value
    return value


async def elements(value):
    """The elements of a stream or of a list with pages, whether it is async or not."""
    if not hasattr(value, "__aiter__"):
        value = await await_if_needed(value)
    if hasattr(value, "__aiter__"):
        return [element async for element in value]
    return list(value)
