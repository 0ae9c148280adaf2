"""Writes a tiny model for tests of a real engine: make_model.py OUT.gguf

The architecture is LLaMA's, the weights are random and the vocabulary is bytes, so nothing is downloaded. The model
answers every prompt with the letter "a", again and again: an engine that parses calls of tools answers 500 to nonsense
that it can't parse. Everything around the answer is real: tokens, slots, the KV cache and how much of it is reused.
Needs `gguf` and `numpy`.
"""

import sys

import gguf
import numpy as np

LAYERS = 2
WIDTH = 64
HEADS = 4
HIDDEN = 128
CONTEXT = 16384
# The first component of every embedding, and the weight of it in the score of "a". Other components and weights are
# random with a deviation of 0.1, so that the score of "a" is far above all others whatever the prompt is.
CONSTANT = 4.0


def vocabulary():
    """Texts and types of all tokens: three special ones, each byte, and the printable characters."""
    special = [b"<unk>", b"<s>", b"</s>"]
    bytes_ = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    # SentencePiece writes a space as U+2581.
    printable = [bytes([byte]) for byte in range(0x21, 0x7F)] + ["\u2581".encode()]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types += [gguf.TokenType.BYTE] * len(bytes_) + [gguf.TokenType.NORMAL] * len(printable)
    return special + bytes_ + printable, types


def describe(writer, tokens, types):
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add_weights(writer, tokens):
    chance = np.random.default_rng(2026)

    def random_weights(*shape):
        return chance.normal(0.0, 0.1, shape).astype(np.float32)

    def add(name, *shape):
        writer.add_tensor(name, random_weights(*shape))

    def add_ones(name):
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    embeddings, scores = random_weights(len(tokens), WIDTH), random_weights(len(tokens), WIDTH)
    embeddings[:, 0] = CONSTANT
    scores[tokens.index(b"a"), 0] = CONSTANT
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", scores)
    add_ones("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_ones(f"{block}.attn_norm.weight")
        add_ones(f"{block}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{part}.weight", WIDTH, WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            add(f"{block}.{part}.weight", HIDDEN, WIDTH)
        add(f"{block}.ffn_down.weight", WIDTH, HIDDEN)


def main(path):
    writer = gguf.GGUFWriter(path, "llama")
    tokens, types = vocabulary()
    describe(writer, tokens, types)
    add_weights(writer, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
