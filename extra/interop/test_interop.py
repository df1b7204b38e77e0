#!/usr/bin/env python3
"""test_interop.py - other people's programs read our checkpoints, and ours read theirs.

It trains tiny models of every kind on this project's licence and compares `generate --score` with a
second implementation of the model below: numpy, double precision, one window at a time, written
from the papers and nothing else. Then the safetensors library rewrites checkpoints: in its own
order, as shards, in half precision; and as a Mixtral that knows nothing of ours. The tokenizers
library reads what we say of the vocabulary. Where torch and transformers are installed too, an
exported model is opened with them. `make interop` installs what it needs; BIN is where the
programs are, as "build/"."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from harness import check, done  # noqa: E402

try:
    import numpy as np
    import safetensors
    import safetensors.numpy
    import tokenizers
except ImportError as error:
    print("no %s here: skipped (make interop installs it)" % error.name)
    done("test_interop")

os.environ["HF_HUB_OFFLINE"] = "1"       # all that is opened lies here
BIN = os.path.abspath(os.environ.get("BIN") or ".")
TEXT = os.path.join(ROOT, "LICENSE")
TINY = ("--width 32 --layers 2 --heads 4 --context 16 --experts 4 --hidden 12 --steps 30 --batch 8 "
        "--lr 0.02 --min-lr 0.02 --warmup 3 --threads 1").split()
EXACT, CLOSE, FAR = 1.5e-6, 1e-5, 1e-4   # a last digit; float against double; another model

# --- the model, a second time ---------------------------------------------------------------------
# c: config.json    w: the tensors by name    T: tokens of a window    x: [T, C]

def rms_norm(x, gain, c):
    return gain * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c["rms_norm_eps"])


def softmax(r):
    e = np.exp(r - r.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rotate(x, theta):
    """RoPE: at position t the pair (x[i], x[i + half]) turns by t * theta^(-i / half)."""
    half = x.shape[-1] // 2
    angle = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attention(x, layer, c):
    heads = (len(x), c["num_attention_heads"], -1)
    theta = (c.get("rope_parameters") or c)["rope_theta"]
    q, k, v = (np.reshape(x @ layer("self_attn.%s_proj" % name).T, heads) for name in "qkv")
    score = np.einsum("thi,shi->hts", rotate(q, theta), rotate(k, theta)) / np.sqrt(q.shape[-1])
    score[:, np.triu(np.ones(score.shape[1:], bool), 1)] = -np.inf      # what comes later
    out = np.einsum("hts,shi->thi", softmax(score), v)
    return out.reshape(x.shape) @ layer("self_attn.o_proj").T


def choose(P, c):
    """The experts of one token, from its shares P: [E]."""
    order = sorted(range(len(P)), key=lambda e: (-P[e], e))
    if c.get("routing", "topk") == "topk":
        return order[:c["num_experts_per_tok"]]
    if c["top_p"] == 1:
        return order
    reached = np.cumsum(P[order]) >= c["top_p"]
    return order[:1 + int(reached.argmax())] if reached.any() else order


def moe(x, layer, c):
    y = np.zeros_like(x)
    for t, P in enumerate(softmax(x @ layer("block_sparse_moe.gate").T)):
        chosen = choose(P, c)
        total = P[chosen].sum() if c.get("norm_topk_prob", True) else 1
        for e in chosen:
            w1, w2, w3 = (layer("block_sparse_moe.experts.%d.w%d" % (e, i)) for i in (1, 2, 3))
            gate = w1 @ x[t]
            y[t] += P[e] / total * (w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ x[t])))
    return y


def logits(w, c, ids):
    w = {name: tensor.astype(np.float64) for name, tensor in w.items()}
    x = w["model.embed_tokens.weight"][ids]
    for l in range(c["num_hidden_layers"]):
        def layer(name, l=l):
            return w["model.layers.%d.%s.weight" % (l, name)]
        x = x + attention(rms_norm(x, layer("input_layernorm"), c), layer, c)
        x = x + moe(rms_norm(x, layer("post_attention_layernorm"), c), layer, c)
    return rms_norm(x, w["model.norm.weight"], c) @ w["lm_head.weight"].T


def tokens(text, c):
    return np.array([c.get("vocab", range(256)).index(byte) for byte in text])


def loss(w, c, text):
    """The mean cross-entropy of all bytes but the first, in windows."""
    ids, T, n, total = tokens(text, c), c["max_position_embeddings"], len(text) - 1, 0
    for start in range(0, n, T):
        end = min(start + T, n)
        P = softmax(logits(w, c, ids[start:end]))
        total -= np.log(P[np.arange(end - start), ids[start + 1:end + 1]]).sum()
    return total / n


# --- checkpoints ----------------------------------------------------------------------------------

def read_config(folder):
    with open(folder + "/config.json", encoding="utf-8") as file:
        return json.load(file)


def write_config(folder, c):
    with open(folder + "/config.json", "w", encoding="utf-8") as file:
        json.dump(c, file)


def read(folder):
    """The tensors and config.json."""
    return safetensors.numpy.load_file(folder + "/model.safetensors"), read_config(folder)


def run(program, *arguments, status=0):
    """What a program prints where it ends with this status: a character for each byte. What it does
    instead, otherwise."""
    done = subprocess.run([os.path.join(BIN, program), *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    said = (done.stderr if done.returncode else done.stdout).decode("latin-1")
    return said if done.returncode == status else "status %d: %s" % (done.returncode, said.strip())


def score(folder, file="text"):
    """What generate makes of a text; NaN, which is near nothing, where it does not."""
    said = run("generate", folder, "--threads", "1", "--score", file)
    found = re.fullmatch(r"nll (\d+\.\d{6}) nats/token over \d+ tokens\n", said)
    if not found:
        print("    generate %s: %s" % (folder, said))
    return float(found[1]) if found else float("nan")


def agree(name, folder, expected, within, file="text"):
    seen = score(folder, file)
    check(name, abs(seen - expected) <= within, "%.6f, should be %.6f" % (seen, expected))


def train(folder, *options, data="data"):
    said = run("train_tiny", "--data", data, "--out", folder, *TINY, *options)
    check("train %s" % " ".join(options), "\nfinal: " in said, said)


def save(name, w, c, metadata=None):
    """A new folder with a checkpoint as the library writes it."""
    os.mkdir(name)
    write_config(name, c)
    safetensors.numpy.save_file(w, name + "/model.safetensors", metadata)


def same_file(a, b, name):
    with open(a + "/" + name, "rb") as one, open(b + "/" + name, "rb") as other:
        return one.read() == other.read()


# --- what is checked ------------------------------------------------------------------------------

def every_kind(text):
    """Each way to route, to weigh and to size experts; and other windows, heads and layers."""
    kinds = ["--sizes homogeneous", "--sizes arithmetic", "--sizes geometric", "--sizes hybrid",
             "--sizes modse", "--sizes 3,1,2.5,2", "--k 1", "--k 1 --gate norm", "--k 3 --gate raw",
             "--k 4", "--routing topp", "--routing topp --p 0.3 --gate raw", "--routing topp --p 1",
             "--noisy", "--noisy --routing topp --p 0.8", "--experts 1", "--experts 9 --hidden 5",
             "--heads 1 --layers 3 --context 5", "--heads 16 --width 64 --context 100",
             "--context 1000 --steps 3 --batch 1"]
    for kind in kinds:
        folder = "kind" + kind.replace(" ", "_")
        train(folder, *kind.split())
        w, c = read(folder)
        agree("score: " + kind, folder, loss(w, c, text), CLOSE)
        if "--noisy" in kind:
            noise = w["model.layers.0.block_sparse_moe.noise.weight"]
            check("%s: has learned its noise" % kind, np.abs(noise).max() > 0)


def what_is_compared_matters(text):
    """The same comparison fails where anything is another: so it does not hold by chance."""
    w, c = read("kind--sizes_arithmetic")
    right = score("kind--sizes_arithmetic")
    changes = {"rms_norm_eps": 0.01, "num_attention_heads": 2, "num_experts_per_tok": 1,
               "norm_topk_prob": False, "routing": "topp", "max_position_embeddings": 8,
               "rope_parameters": {"rope_theta": 5000}}
    for key, value in changes.items():
        other = abs(loss(w, dict(c, **{key: value}), text) - right)
        check("another %s is another loss" % key, other > FAR, other)
    for name in w:
        if "layers.1.block" not in name:
            other = abs(loss(dict(w, **{name: w[name] * 1.5}), c, text) - right)
            check("another %s is another loss" % name, other > CLOSE, other)


def windows(text):
    """A text of one window and less, of one and a token, of two and a token."""
    w, c = read("kind--sizes_hybrid")
    for n in (2, 16, 17, 18, 34):
        with open("part", "wb") as file:
            file.write(text[:n])
        agree("a text of %d bytes" % n, "kind--sizes_hybrid", loss(w, c, text[:n]), CLOSE, "part")


def it_writes_the_same():
    """The likeliest byte each time, up to the end of a window."""
    for folder in ("kind--sizes_modse", "kind--routing_topp"):
        w, c = read(folder)
        written = list(tokens(b"Permission", c))
        while len(written) < c["max_position_embeddings"]:
            written.append(int(logits(w, c, np.array(written))[-1].argmax()))
        seen = run("generate", folder, "--prompt", "Permission", "-n", str(len(written) - 10),
                   "--temperature", "0")
        check("greedy: " + folder, seen == "".join(chr(c["vocab"][i]) for i in written), seen)


def byte_character(byte):
    """GPT-2's alphabet: a byte that can be seen is itself, the others follow from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in seen]
    return chr(byte if byte in seen else 256 + hidden.index(byte))


def vocabularies(text):
    with open("bytes", "wb") as file:
        file.write(bytes(range(256)) * 4)
    train("all-bytes", "--steps", "1", data="bytes")
    utf8 = "".join(chr(i) for i in itertools.chain(range(0x800), range(0x800, 0xd800, 61),
                                                   range(0xe000, 0x110000, 4099)))
    for folder, sample in (("kind--k_4", text.decode()), ("all-bytes", utf8)):
        with open(folder + "/tokenizer_config.json", encoding="utf-8") as file:
            check("tokenizer_config of " + folder, json.load(file)
                  == {"tokenizer_class": "PreTrainedTokenizerFast"})
        vocab, tokenizer = read_config(folder)["vocab"], tokenizers.Tokenizer.from_file(
            folder + "/tokenizer.json")
        check("vocabulary of " + folder, tokenizer.get_vocab()
              == {byte_character(byte): i for i, byte in enumerate(vocab)}, tokenizer.get_vocab())
        ids = tokenizer.encode(sample).ids
        check("ids of " + folder, ids == [vocab.index(b) for b in sample.encode()], ids)
        check("and back, " + folder, tokenizer.decode(ids) == sample)
        for part in (" a  b", "  ", "\n\n ", "it's 1000 'LL", ""):   # nothing is put before a word
            ids = [vocab.index(b) for b in part.encode() if b in vocab]
            part = bytes(vocab[i] for i in ids).decode()
            check("ids of %r in %s" % (part, folder), tokenizer.encode(part).ids == ids
                  and tokenizer.decode(ids) == part, tokenizer.encode(part).ids)
    check("all 256 bytes", read_config("all-bytes")["vocab"] == list(range(256)))


def other_order():
    """The library reads a checkpoint and writes it: other offsets, the same digits."""
    folder = "kind--sizes_arithmetic"
    w, c = read(folder)
    with safetensors.safe_open(folder + "/model.safetensors", "np") as file:
        ours, said = list(file.offset_keys()), file.metadata()
    check("the library knows the format", said == {"format": "pt"}, said)
    for metadata in (None, {}, {"format": "pt", "from": "\"a\\b\n\""}):
        save("again", w, c, metadata)
        with safetensors.safe_open("again/model.safetensors", "np") as file:
            check("another order", file.offset_keys() != ours)
        agree("rewritten, %s" % metadata, "again", score(folder), 0)
        shutil.rmtree("again")


def runs():
    """A run's own file, read and written by the library: it goes on as if nothing had happened."""
    shutil.copytree("kind--noisy", "run")
    name = "run/training.safetensors"
    all_of_it, w = safetensors.numpy.load_file(name), read("run")[0]
    check("a run is its weights and their moments", all_of_it.keys()
          == {k + end for k in w for end in ("", ".exp_avg", ".exp_avg_sq")})
    check("the weights are the model's", all(
        (all_of_it[k].astype(np.float32) == w[k]).all() for k in w))
    with safetensors.safe_open(name, "np") as file:
        said = file.metadata()
    check("the run says where it is", said["step"] == "30" and said["tokens"] == "3840", said)
    safetensors.numpy.save_file(all_of_it, name, metadata=said)
    for folder in ("run", "kind--noisy"):
        train(folder, "--noisy", "--resume", "--steps", "35")
    check("the run goes on as it would have", same_file("run", "kind--noisy", "model.safetensors"))


def save_shards(folder, c, parts):
    """Files such as model-00001-of-00002.safetensors, and the index of what is where."""
    os.mkdir(folder)
    write_config(folder, c)
    index = {"metadata": {"total_size": sum(t.nbytes for part in parts for t in part.values())},
             "weight_map": {}}
    for i, part in enumerate(parts):
        name = "model-%05d-of-%05d.safetensors" % (i + 1, len(parts))
        safetensors.numpy.save_file(part, folder + "/" + name, metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(part, name))
    with open(folder + "/model.safetensors.index.json", "w", encoding="utf-8") as file:
        json.dump(index, file, indent=2, sort_keys=True)


def shards():
    folder = "kind--noisy"
    w, c = read(folder)
    for n in (1, 2, 3):
        names = sorted(w, key=lambda name: (name[::-1], name))      # no order of ours
        parts = [{name: w[name] for name in names[i::n]} for i in range(n)]
        save_shards("shards%d" % n, c, parts)
        agree("%d shards" % n, "shards%d" % n, score(folder), 0)
    os.remove("shards3/model-00002-of-00003.safetensors")
    said = run("generate", "shards3", "-n", "1", status=1)
    check("a missing shard", "model-00002-of-00003.safetensors" in said, said)


def round_bf16(x):
    """The upper halves of floats, to the nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def halves(text):
    """Tensors of half precision: the weights are the rounded ones, exactly."""
    w, c = read("kind--sizes_geometric")
    half = {name: tensor.astype(np.float16) for name, tensor in w.items()}
    save("f16", half, c)
    agree("F16", "f16", loss(half, c, text), CLOSE)
    for name, kept in (("bf16", ()), ("mixed", (1,))):     # mixed: vectors stay float32
        stored = {k: t if t.ndim in kept else round_bf16(t) for k, t in w.items()}
        rounded = {k: t if t.ndim in kept else (t.astype(np.uint32) << 16).view(np.float32)
                   for k, t in stored.items()}
        save(name, w, c)
        safetensors.serialize_file({k: safetensors.TensorSpec(   # numpy has no such type
            dtype="float32" if t.ndim in kept else "bfloat16", shape=t.shape,
            data_ptr=t.ctypes.data, data_len=t.nbytes) for k, t in stored.items()},
            name + "/model.safetensors", metadata={"format": "pt"})
        agree(name, name, loss(rounded, c, text), CLOSE)
        check("%s: rounding shows" % name, abs(score(name) - loss(w, c, text)) > CLOSE)


def plain_mixtral(V, K, seed):
    """A Mixtral as others make it: its config has Mixtral's keys alone, its weights are large."""
    draw, C, E, H = np.random.default_rng(seed), 24, 5, 17
    c = {"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
         "eos_token_id": 2, "hidden_act": "silu", "hidden_size": C, "initializer_range": 0.02,
         "intermediate_size": H, "max_position_embeddings": 12, "model_type": "mixtral",
         "num_attention_heads": 3, "num_experts_per_tok": K, "num_hidden_layers": 2,
         "num_key_value_heads": 3, "num_local_experts": E, "output_router_logits": False,
         "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
         "router_jitter_noise": 0.0, "sliding_window": None, "head_dim": 8,
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.57.1",
         "use_cache": True, "vocab_size": V}
    w = {"model.embed_tokens": (V, C), "lm_head": (V, C), "model.norm": (C,)}
    for l in range(2):
        p = "model.layers.%d." % l
        w.update({p + "self_attn.%s_proj" % name: (C, C) for name in "qkvo"})
        w.update({p + name: (C,) for name in ("input_layernorm", "post_attention_layernorm")})
        w[p + "block_sparse_moe.gate"] = (E, C)
        for e in range(E):
            p = "model.layers.%d.block_sparse_moe.experts.%d." % (l, e)
            w.update({p + "w1": (H, C), p + "w2": (C, H), p + "w3": (H, C)})
    w = {name + ".weight": (draw.normal(0, 2 / np.sqrt(shape[-1]), shape) if len(shape) == 2
                            else draw.normal(1, 0.3, shape)).astype(np.float32)
         for name, shape in w.items()}
    return w, c


def mixtral_of_others(text):
    """Token i is byte i, where there are no more tokens than bytes. Routers are sure of themselves
    here and logits reach 10, so that float32 has fewer digits left."""
    variants = {"as-is": {}, "small": {"vocab_size": 128}, "one-expert": {"num_experts_per_tok": 1},
                "window": {"sliding_window": 12}, "no-head_dim": {"head_dim": None},
                "scaling-null": {"rope_scaling": None, "quantization_config": None},
                "dtype": {"dtype": "bfloat16", "torch_dtype": None},
                "rope_parameters": {"rope_theta": None, "rope_parameters": {
                    "rope_theta": 500000.0, "rope_type": "default"}}}
    for name, changes in variants.items():
        w, c = plain_mixtral(changes.get("vocab_size", 256), changes.get("num_experts_per_tok", 2),
                             len(name))
        c = {key: value for key, value in {**c, **changes}.items()
             if value is not None or key not in ("head_dim", "rope_theta", "torch_dtype")}
        save("plain-" + name, w, c)
        agree("a plain Mixtral, " + name, "plain-" + name, loss(w, c, text), CLOSE)
    check("it writes bytes", len(run("generate", "plain-as-is", "-n", "9")) == 9)
    w, c = plain_mixtral(300, 2, 1)
    save("plain-300", w, c)
    for option in (("-n", "1"), ("--score", "text")):
        said = run("generate", "plain-300", *option, status=1)
        check("300 tokens are no bytes", "vocab" in said, said)
    said = run("generate", "plain-300", "--export-mixtral", "plain-300-out")
    check("300 tokens can be exported", "plain-300-out" in said, said)
    again = read("plain-300-out")[0]
    check("and are what they were", w.keys() == again.keys()
          and all((w[name] == again[name]).all() for name in w))


def refused():
    """What this library does not compute, it does not open: each by the name of the key."""
    w, c = plain_mixtral(256, 2, 3)
    save("refused", w, c)
    changes = {"num_key_value_heads": 1, "tie_word_embeddings": True, "sliding_window": 8,
               "head_dim": 16, "quantization_config": {"quant_method": "gptq", "bits": 4},
               "rope_scaling": {"type": "linear", "factor": 2.0}, "model_type": "llama",
               "hidden_act": "gelu", "attention_bias": True, "num_local_experts": 4,
               "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}}
    for key, value in changes.items():
        write_config("refused", dict(c, **{key: value}))
        said = run("generate", "refused", "-n", "1", status=1)
        named = "experts.4." if key == "num_local_experts" else key
        check("refused by name: " + key, named in said and said.count("\n") == 1, said)
    w["model.norm.weight"] = w["model.norm.weight"].astype(np.float64)
    save("refused64", w, c)
    said = run("generate", "refused64", "-n", "1", status=1)
    check("refused by name: F64", "model.norm.weight" in said and "F64" not in said, said)


def exports(text):
    """Padded with zeros, a model of any widths is an ordinary Mixtral and computes the same."""
    for kind in ("homogeneous", "arithmetic", "geometric", "hybrid", "modse", "3,1,2.5,2", "noisy"):
        folder = "kind--noisy" if kind == "noisy" else "kind--sizes_" + kind
        out = "export-" + kind
        said = run("generate", folder, "--export-mixtral", out)
        check("export of " + kind, said.startswith(out + ": "), said)
        (w, c), (wide, cw) = read(folder), read(out)
        agree("export of %s: its score" % kind, out, score(folder), EXACT)
        check("export of %s: its loss" % kind,
              abs(loss(wide, cw, text) - loss(w, c, text)) < 1e-12)
        H = max(c["expert_sizes"])
        ours = ("architectures", "model_type", "expert_sizes", "noisy_gating", "top_p")
        check("export of %s: its config" % kind, cw["architectures"] == ["MixtralForCausalLM"]
              and cw["model_type"] == "mixtral" and cw["intermediate_size"] == H
              and cw["expert_sizes"] == [H] * c["num_local_experts"] and not cw["noisy_gating"]
              and all(cw[key] == c[key] for key in c if key not in ours), cw)
        check("export of %s: its tensors" % kind,
              set(wide) == {name for name in w if "noise" not in name})
        for name in wide:
            cut = tuple(slice(n) for n in w[name].shape)
            is_expert = re.search(r"experts\.\d+\.w(\d)", name)
            shape = w[name].shape if not is_expert else (32, H) if is_expert[1] == "2" else (H, 32)
            rest = wide[name].copy()
            rest[cut] = 0
            check("export of %s: %s" % (kind, name), wide[name].shape == shape
                  and (wide[name][cut] == w[name]).all() and not rest.any())
        for file in ("tokenizer.json", "tokenizer_config.json"):
            check("export of %s: %s" % (kind, file), same_file(folder, out, file))


def transformers_opens(text):
    """Where they are installed: an export is a MixtralForCausalLM with the same logits, and writes;
    and what it saves comes back."""
    try:
        import torch
        import transformers
    except ImportError as error:
        print("no %s here: its part is skipped" % error.name)
        return
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for folder in ("kind--sizes_homogeneous", "export-modse", "export-noisy"):
        w, c = read(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        check("%s is a Mixtral" % folder, type(model).__name__ == "MixtralForCausalLM", type(model))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(text.decode())["input_ids"]
        check("%s: AutoTokenizer's ids" % folder, ids == tokens(text, c).tolist(), ids)
        sampling = model.generation_config.to_diff_dict()    # found in config.json, if there is any
        check("%s: no key of ours is one for sampling" % folder,
              not {"top_p", "top_k", "temperature"} & set(sampling), sampling)
        ids = ids[:c["max_position_embeddings"]]
        with torch.no_grad():
            seen = model(torch.tensor([ids])).logits[0].double().numpy()
        far = np.abs(seen - logits(w, c, np.array(ids))).max()
        check("%s: logits of transformers" % folder, far < FAR, far)
        writer = transformers.pipeline("text-generation", model=folder)
        said = writer("Permission", max_new_tokens=6, do_sample=False)[0]["generated_text"]
        ours = run("generate", folder, "--prompt", "Permission", "-n", "6", "--temperature", "0")
        check("%s: pipeline" % folder, said == ours, said)
        for size in ("1GB", "20KB"):
            again = "%s-%s" % (folder, size)
            model.save_pretrained(again, max_shard_size=size)
            # what transformers does not know of is what config.json lost: which byte is which token
            write_config(again, dict(read_config(again), vocab=c["vocab"]))
            agree("%s: saved by transformers, %s" % (folder, size), again, score(folder), EXACT)
    config = transformers.MixtralConfig(
        vocab_size=256, hidden_size=32, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=len(text), sliding_window=None, initializer_range=0.3)
    torch.manual_seed(1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        theirs = "theirs-%s" % dtype
        transformers.MixtralForCausalLM(config).to(dtype).save_pretrained(theirs)
        model = transformers.AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
        ids = torch.tensor([list(text)])
        with torch.no_grad():
            right = model(ids, labels=ids).loss.item()
        agree("a Mixtral that transformers made, %s" % dtype, theirs, right, CLOSE)


def main():
    with open(TEXT, "rb") as file:
        text = file.read()
    with open("data", "wb") as file:
        file.write(text * 2)
    text = text[-150:]                      # windows of 16, the last one shorter
    with open("text", "wb") as file:
        file.write(text)
    every_kind(text)
    what_is_compared_matters(text)
    windows(text)
    it_writes_the_same()
    vocabularies(text)
    other_order()
    runs()
    shards()
    halves(text)
    mixtral_of_others(text)
    refused()
    exports(text)
    transformers_opens(text)


with tempfile.TemporaryDirectory(prefix="hmoe-interop-") as here:
    os.chdir(here)
    main()
    os.chdir("/")
done("test_interop")
