"""Run alone: does with exported directories what their users do, where this package cannot be
imported.

Usage: use_exported.py FOLDER WORK. `test_export_use.py` fills FOLDER; all that is written goes to
WORK, also results.json: for each check its traceback, or nothing where it passes.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import http.server
import io
import json
import os
import shutil
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.modeling_outputs import CausalLMOutputWithPast


class OnlyTransformers(MetaPathFinder):
    """Hides this package and what it needs beyond torch and transformers."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mm1_pipeline", "pydantic", "kedro", "composer", "streaming"):
            raise ModuleNotFoundError(name, name=name)


for name in [*sys.modules]:
    assert not name.startswith("mm1_pipeline"), name
sys.meta_path.insert(0, OnlyTransformers())

ROOT, WORK = map(Path, sys.argv[1:])
OWN, MOE, LLAVA = ROOT / "dense", ROOT / "moe", ROOT / "llava"
PLAN = json.loads((ROOT / "plan.json").read_text())
EXPECTED = load_file(ROOT / "expected.safetensors")
TRUSTED: dict[str, Any] = {"trust_remote_code": True}
IS_OLD = transformers.__version__.startswith("4.")
GREEDY = {"max_new_tokens": 8, "do_sample": False}

model = transformers.AutoModelForImageTextToText.from_pretrained(OWN, **TRUSTED).eval()
processor = transformers.AutoProcessor.from_pretrained(OWN, **TRUSTED)
tokenizer = processor.tokenizer
image_id = tokenizer.convert_tokens_to_ids("<|image|>")

CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> None:
    CHECKS[function.__name__] = function


def picture(seed: int, width: int = 30, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(images, **options) -> torch.Tensor:
    return processor(images=images, **options)["pixel_values"]


def user(*parts) -> dict:
    content = [
        {"type": "text", "text": each} if isinstance(each, str) else {"type": "image", **each}
        for each in parts
    ]
    return {"role": "user", "content": content}


PROMPTS = [
    ([picture(1)], "<|image|> a cat"),
    ([picture(2, 9, 9), picture(3)], "<|image|> and <|image|> a dog sat on"),
    ([], "A mat"),
    ([picture(4), picture(5, 8, 8), picture(6)], "<|image|><|image|> what <|image|>"),
]


def one(prompt) -> dict:
    images, text = prompt
    return processor(images=images or None, text=text)


def batch() -> dict:
    images, texts = zip(*PROMPTS, strict=True)
    return processor(images=[*images], text=[*texts], padding=True)


def answers(inputs, **options) -> list[list[int]]:
    """Generated tokens up to the end of text."""
    torch.manual_seed(0)
    found = model.generate(**inputs, **{**GREEDY, **options})
    rows = found[:, inputs["input_ids"].shape[1] :].tolist()
    ends = (model.config.eos_token_id, model.config.pad_token_id)
    return [row[: next((i for i, x in enumerate(row) if x in ends), len(row))] for row in rows]


@contextlib.contextmanager
def refused(error: type[Exception], text: str) -> Iterator[None]:
    found = "nothing"
    try:
        yield
    except error as raised:
        found = str(raised)
    assert text in found, f"found {found!r}, expected {text!r}"


@check
def files_show_the_pixels_of_training():
    for name in PLAN["images"]:
        path = ROOT / "images" / name
        data = path.read_bytes()
        text = base64.b64encode(data).decode()
        for form in (str(path), path, data, text, f"data:image/png;base64,{text}", [[path]]):
            assert torch.equal(shown(form), EXPECTED[name]), (name, type(form))


@check
def opened_images_show_the_pixels_of_training():
    for name in PLAN["images"]:
        if name in PLAN["not_by_pillow"]:
            continue
        with Image.open(ROOT / "images" / name) as image:
            assert torch.equal(shown(image), EXPECTED[name]), name
            assert torch.equal(shown([image, image])[-len(EXPECTED[name]) :], EXPECTED[name]), name


@check
def what_training_refuses_is_refused():
    for name, reason in PLAN["refused"].items():
        for form in (ROOT / "images" / name, Image.open(ROOT / "images" / name)):
            with refused(ValueError, reason):
                shown(form)
    for form in (
        "no such file.png",
        "",
        b"",
        b"no image",
        object(),
        3,
        np.zeros(4),
        np.ones((5, 5, 5)),
    ):
        with refused(ValueError, "Found"):
            shown(form)
    for values in (np.full((4, 4, 3), -1.0), np.full((4, 4), np.nan), np.full((4, 4), 70_000)):
        with refused(ValueError, "expected values from 0"):
            shown(values)


@check
def arrays_show_the_pixels_of_images():
    image = picture(7)
    pixels = np.asarray(image)
    first = torch.tensor(pixels).permute(2, 0, 1)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    forms: tuple[Any, ...] = (
        pixels,
        pixels[None],
        [pixels],
        pixels.transpose(2, 0, 1),
        pixels.astype(np.int64),
        pixels.astype(np.float32),
        pixels / 255,
        pixels.astype(np.uint16) * 257,
        opaque,
        opaque / 255,
        opaque.transpose(2, 0, 1),
        first,
        first[None],
        first / 255,
        (first / 255).double(),
    )
    for number, form in enumerate(forms):
        assert torch.equal(shown(form), shown(image)), number
    grey = pixels[..., 0]
    for form in (grey, grey[..., None], grey[None], grey / 255, grey.astype(np.uint16) * 257):
        assert torch.equal(shown(form), shown(Image.fromarray(grey))), (form.dtype, form.shape)
    assert torch.equal(shown(grey > 99), shown(Image.fromarray(grey > 99)))
    for alpha in (opaque, np.dstack([grey, grey])):
        see_through = alpha.copy()
        see_through[..., -1] = 100
        assert torch.equal(shown(see_through), shown(Image.fromarray(see_through)))
    narrow = np.random.default_rng(0).integers(0, 255, (3, 9, 3), dtype=np.uint8)
    last = shown(narrow, images_kwargs={"input_data_format": "channels_last"})
    assert torch.equal(last, shown(Image.fromarray(narrow)))
    assert not torch.equal(shown(narrow, input_data_format="channels_first"), last)


@check
def images_come_from_urls():
    handler: Any = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=ROOT / "images"
    )
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert torch.equal(shown(f"{address}/la.png"), EXPECTED["la.png"])
        with refused(ValueError, "Found no image at"):
            shown(f"{address}/missing.png")
        server.shutdown()
    path = ROOT / "images" / "la.png"
    with refused(ValueError, "Found no image at"):
        shown(f"{address}/la.png")
    with refused(ValueError, "Found no image at"):
        shown(path.with_name("no such file.png").as_uri())
    with path.open("rb") as opened:
        for form in (path.as_uri(), opened, io.BytesIO(path.read_bytes())):
            assert torch.equal(shown(form), EXPECTED["la.png"]), form
    quoted = urllib.parse.quote(path.read_bytes())
    assert torch.equal(shown(f"data:image/png,{quoted}"), EXPECTED["la.png"])
    with refused(ValueError, "Found 'a cat' as an image"):  # which is base64 as well
        shown("a cat")


@check
def arguments_stand_in_either_order():
    image, text = picture(1), "<|image|> a cat"
    named = processor(images=image, text=text)
    for inputs in (processor(image, text), processor(text, image), processor([image], [text])):
        for key, value in named.items():
            assert torch.equal(inputs[key], value), key
    path = str(ROOT / "images" / "la.png")
    for inputs in (processor(path, text), processor(text, path), processor([text], [path])):
        assert torch.equal(inputs["pixel_values"], EXPECTED["la.png"])
    arrays = processor(images=image, text=text, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert (
        processor(text=text.replace("<|image|>", ""), return_tensors=None)["input_ids"][0][0] == 1
    )
    with refused(ValueError, "Found [1, 1] times <|image|> in the texts but [2, 0] images"):
        processor(images=[[image, image], []], text=[text, text], padding=True)
    with refused(ValueError, "Found 1 times"):
        processor(text=text)
    with refused(ValueError, "Give padding=True"):
        processor(text=["a cat", "a cat and a dog sat"])
    with refused(ValueError, "videos or audio"):
        processor(text="a", videos=[picture(1)])


@check
def chats_have_the_tokens_of_training():
    for index, messages in enumerate(PLAN["chats"]):
        images = [picture(seed) for seed in PLAN["chat_images"][index]]
        filled, rest = copy.deepcopy(messages), iter(images)
        for message in filled:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image":
                    part["image"] = next(rest)
        expected = EXPECTED[f"chat {index}"].tolist()
        inputs = processor.apply_chat_template(
            filled,
            add_generation_prompt=messages[-1]["role"] == "user",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert inputs["input_ids"][0].tolist() == expected, (messages, inputs["input_ids"])
        assert inputs["attention_mask"].sum() == len(expected)
        text = processor.apply_chat_template(messages)
        again = processor(images=images or None, text=text)
        assert again["input_ids"][0].tolist() == expected, messages
        if images:
            assert torch.equal(inputs["pixel_values"], shown(images))
            assert torch.equal(again["pixel_values"], shown(images))
        ids = processor.apply_chat_template(filled, tokenize=True)
        assert ids[0].tolist() == expected


@check
def messages_take_images_in_every_form():
    path = ROOT / "images" / "la.png"
    text = base64.b64encode(path.read_bytes()).decode()
    openai = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
    for source in (
        {"image": Image.open(path)},
        {"image": str(path)},
        {"image": path.read_bytes()},
        {"path": str(path)},
        {"url": f"data:image/png;base64,{text}"},
        {"url": path.as_uri()},
        {"base64": text},
        openai,
    ):
        messages = [user(source, "what is it?")]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert torch.equal(inputs["pixel_values"], EXPECTED["la.png"]), source
    with refused(ValueError, "expected text or image"):
        processor.apply_chat_template([user({"type": "video", "path": "a.mp4"})])
    with refused(Exception, "Found role tool"):
        processor.apply_chat_template([{"role": "tool", "content": "a"}])
    with refused(ValueError, "Found 1 times"):
        processor.apply_chat_template([user({}, "what?")], tokenize=True)


@check
def chats_are_batched():
    chats = [
        [user({"image": picture(1)}, "what is it?")],
        [{"role": "user", "content": "a cat"}],
        [user({"image": picture(2, 9, 9)}, {"image": picture(3)})],
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    together = processor.apply_chat_template(chats, padding=True, **options)
    alone = [processor.apply_chat_template(chat, **options) for chat in chats]
    assert torch.equal(
        together["input_ids"][1:2, -alone[1]["input_ids"].shape[1] :], alone[1]["input_ids"]
    )
    assert answers(together) == [answers(inputs)[0] for inputs in alone]
    texts = processor.apply_chat_template(chats)
    images = [picture(1), picture(2, 9, 9), picture(3)]
    again = processor(images=images, text=texts, padding=True)
    assert torch.equal(again["input_ids"], together["input_ids"])


def chats_that_say(said: str) -> list[list[dict]]:
    question = user({"image": picture(1)}, said)
    framed = [{"role": "system", "content": said}, question, {"role": "assistant", "content": said}]
    return [[question], [{"role": "user", "content": said}], framed]


@check
def special_tokens_that_users_type_stay_text():
    special = tokenizer.all_special_tokens
    assert len(special) == 4
    for token in [*special, "<\u2060|image|>", "".join(special), f"<{special[0]}>"]:
        said = f"what is {token}, really? {token}"
        for chat, usual in zip(chats_that_say(said), chats_that_say("a"), strict=True):
            found, expected = (
                processor.apply_chat_template(each, tokenize=True)[0].tolist()
                for each in (chat, usual)
            )
            for special_id in tokenizer.all_special_ids:
                assert found.count(special_id) == expected.count(special_id), (token, chat)
            assert said in tokenizer.decode(found, skip_special_tokens=True)
            images = [picture(1)] if image_id in found else None
            text = processor.apply_chat_template(chat)
            assert processor(images=images, text=text)["input_ids"][0].tolist() == found
    for token in ("<|bos|>", "<|eos|>", "<|pad|>"):
        ids = processor(text=f"say {token}!")["input_ids"][0].tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert not set(ids[1:]) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids[1:]) == f"say {token}!"


@check
def truncation_cuts_text_alone():
    text = "<|image|> a cat and a dog sat on a mat"
    whole = processor(images=picture(1), text=text)["input_ids"][0].tolist()
    last = len(whole) - whole[::-1].index(image_id)
    cut = processor(images=picture(1), text=text, truncation=True, max_length=last + 2)
    assert cut["input_ids"][0].tolist() == whole[: last + 2]
    assert torch.equal(cut["pixel_values"], shown(picture(1)))
    with refused(ValueError, "would cut placeholders"):
        processor(images=picture(1), text=text, truncation=True, max_length=last - 1)
    filled = processor(text="a cat", padding="max_length", max_length=40, truncation=True)
    assert filled["input_ids"].shape == (1, 40)


@check
def pipelines_take_messages():
    pipe: Any = transformers.pipeline("image-text-to-text", model=str(OWN), **TRUSTED)
    messages = [user({"image": picture(1)}, "what is it?")]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    expected = tokenizer.decode(answers(inputs)[0], skip_special_tokens=True)
    options = {**GREEDY, "return_full_text": False}
    assert pipe(text=messages, **options)[0]["generated_text"] == expected
    both = pipe(text=[messages, messages], **options)
    assert [each[0]["generated_text"] for each in both] == [expected] * 2
    full = pipe(text=messages, **GREEDY)[0]["generated_text"]
    assert full[-1] == {"role": "assistant", "content": expected}
    begun = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]
    assert pipe(text=begun, **options)[0]["generated_text"]
    assert pipe(text=[{"role": "user", "content": "a cat"}], **options)[0]["generated_text"]
    assert pipe(images=picture(1), text="<|image|> a cat", **GREEDY)[0]["generated_text"]


@check
def padded_batches_equal_single_prompts():
    assert answers(batch()) == [answers(one(prompt))[0] for prompt in PROMPTS]


@check
def beams_keep_their_images():
    for options in ({"num_beams": 3}, {"num_beams": 3, "cache_implementation": "static"}):
        alone = [answers(one(prompt), **options)[0] for prompt in PROMPTS]
        assert answers(batch(), **options) == alone
    alone = [answers(one(prompt), num_beams=4, num_return_sequences=3) for prompt in PROMPTS]
    together = answers(batch(), num_beams=4, num_return_sequences=3)
    assert together == [row for rows in alone for row in rows]
    assert len({tuple(row) for row in together}) > len(PROMPTS)


@check
def returned_sequences_keep_their_images():
    drawn = answers(batch(), do_sample=True, top_k=1, num_return_sequences=2)
    assert drawn == [row for row in answers(batch()) for _ in range(2)]


@check
def experts_see_no_padding():
    global model
    dense, model = model, transformers.AutoModelForCausalLM.from_pretrained(MOE, **TRUSTED).eval()
    try:
        for options in ({}, {"num_beams": 2, "cache_implementation": "static"}):
            alone = [answers(one(prompt), **options)[0] for prompt in PROMPTS]
            assert answers(batch(), **options) == alone
    finally:
        model = dense


@check
def hidden_states_and_tuples_are_given():
    inputs = batch()
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[0], model.model.embed(*inputs_of(inputs)))
    again = model.get_input_embeddings()(output.hidden_states[-1])  # the tied head
    assert torch.equal(again.float(), output.logits)
    assert not any(layer._forward_pre_hooks for layer in model.model.decoder.layers)
    assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)
    said = model.generate(
        **inputs, **GREEDY, return_dict_in_generate=True, output_hidden_states=True
    )
    assert said.hidden_states[0][0].shape == output.hidden_states[0].shape
    with refused(ValueError, "output_attentions"):
        model(**inputs, output_attentions=True)


def inputs_of(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs["input_ids"], inputs["pixel_values"]


@check
def caches_change_no_answer():
    expected = answers(batch())
    for options in (
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"use_cache": False},
    ):
        assert answers(batch(), **options) == expected, options
    inputs = one(PROMPTS[0])
    expected = answers(inputs)
    assert answers(inputs, prompt_lookup_num_tokens=2) == expected
    assert answers(inputs, assistant_model=copy.deepcopy(model)) == expected
    text = processor(text="a cat and a dog sat on a mat")
    assert answers(text, prefill_chunk_size=4) == answers(text)
    embedded = model.get_input_embeddings()(text["input_ids"])
    given = model.generate(inputs_embeds=embedded, attention_mask=text["attention_mask"], **GREEDY)
    assert given[0, : len(answers(text)[0])].tolist() == answers(text)[0]


@check
def a_cache_is_read_on():
    name = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
    first, second = one(PROMPTS[0]), one(PROMPTS[1])
    cache = transformers.DynamicCache()
    said: Any = model.generate(**first, **{name: cache}, **GREEDY)
    ids = torch.cat([said, second["input_ids"][:, 1:]], dim=1)
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    assert answers(inputs, **{name: cache}) == answers(inputs)


@check
def gradients_are_those_without_checkpointing():
    trained = transformers.AutoModelForCausalLM.from_pretrained(OWN, **TRUSTED).train()
    inputs = batch()

    def gradients():
        trained.zero_grad()
        trained(**inputs, labels=inputs["input_ids"], use_cache=True).loss.backward()
        return [parameter.grad.clone() for parameter in trained.parameters()]

    expected = gradients()
    trained.gradient_checkpointing_enable()
    assert trained.is_gradient_checkpointing
    for found, grad in zip(gradients(), expected, strict=True):
        assert torch.equal(found, grad)
    trained.gradient_checkpointing_disable()
    assert not trained.is_gradient_checkpointing


@check
def resized_embeddings_load_again():
    for directory in (OWN, MOE):
        resized = transformers.AutoModelForCausalLM.from_pretrained(directory, **TRUSTED)
        resized.resize_token_embeddings(320)
        ids = torch.tensor([[1, 30, 319]])
        logits = resized(input_ids=ids).logits
        assert logits.shape[-1] == 320
        resized.save_pretrained(WORK / "resized" / directory.name)
        again = transformers.AutoModelForCausalLM.from_pretrained(
            WORK / "resized" / directory.name, **TRUSTED
        )
        assert torch.equal(again(input_ids=ids).logits, logits)
        again.resize_token_embeddings(310)
        original = transformers.AutoModelForCausalLM.from_pretrained(directory, **TRUSTED)
        ids = torch.tensor([[1, 30, 40]])
        assert torch.equal(again(input_ids=ids).logits, original(input_ids=ids).logits)


@check
def every_auto_class_loads_it():
    inputs = batch()
    classes = [transformers.AutoModel, transformers.AutoModelForCausalLM]
    if IS_OLD:
        classes.append(transformers.AutoModelForVision2Seq)
    for auto_class in classes:
        loaded = auto_class.from_pretrained(OWN, **TRUSTED)
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert transformers.AutoTokenizer.from_pretrained(OWN)("a cat").keys() == {
        "input_ids",
        "attention_mask",
    }
    sub_images = transformers.AutoImageProcessor.from_pretrained(OWN, **TRUSTED)(picture(1))
    assert torch.equal(sub_images["pixel_values"], shown(picture(1)))


@check
def what_is_saved_again_loads_anywhere():
    model.save_pretrained(WORK / "again")
    processor.save_pretrained(WORK / "again")
    (WORK / "again").rename(WORK / "moved")
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(WORK / "moved", **TRUSTED)
    reader = transformers.AutoProcessor.from_pretrained(WORK / "moved", **TRUSTED)
    images, texts = zip(*PROMPTS, strict=True)
    inputs = reader(images=[*images], text=[*texts], padding=True)
    for key, value in batch().items():
        assert torch.equal(inputs[key], value), key
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    chat = [user({"image": picture(1)}, "what is it?")]
    assert reader.apply_chat_template(chat) == processor.apply_chat_template(chat)
    shutil.rmtree(WORK / "moved")


@check
def weights_may_lie_on_the_disk():
    inputs = batch()
    parts = {"model.vision": "disk", "model.connector": "cpu", "model.decoder": "disk"}
    split = {"model.vision": "cpu", "model.connector": "disk", "model.decoder.embedding": "disk"}
    split |= dict.fromkeys(("model.decoder.layers", "model.decoder.final_norm"), "cpu")
    for directory in (OWN, MOE):
        whole = transformers.AutoModelForCausalLM.from_pretrained(directory, **TRUSTED)
        maps = ["cpu", "auto", parts]
        maps += [split | ({"model.decoder.head": "disk"} if directory == MOE else {})]
        given = inputs if directory == OWN else {"input_ids": torch.tensor([[1, 30, 40]])}
        for device_map in maps:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                directory, device_map=device_map, offload_folder=str(WORK / "offload"), **TRUSTED
            )
            with torch.no_grad():
                assert_close(loaded(**given).logits, whole(**given).logits)
            options = {**GREEDY, "max_new_tokens": 3}
            found: Any = loaded.generate(**given, **options)
            expected: Any = whole.generate(**given, **options)
            assert torch.equal(found, expected)


@check
def weights_may_lie_on_several_devices():
    inputs = batch()
    for directory, places in (
        (OWN, {"vision": 2, "connector": 0, "decoder": 1}),
        (OWN, {"vision": 0, "connector": 0, "decoder": 1, "decoder.layers.1": 2}),
        (MOE, {"vision": 0, "connector": 1, "decoder": 1, "decoder.head": 2}),
    ):
        whole = transformers.AutoModelForCausalLM.from_pretrained(directory, **TRUSTED)
        expected = whole(**inputs, labels=inputs["input_ids"])
        said = whole.generate(**inputs, num_beams=2, **GREEDY)
        with SeveralDevices(whole, places) as devices:
            found = whole(**inputs, labels=inputs["input_ids"])
            assert torch.equal(found.logits, expected.logits), places
            assert torch.equal(found.loss, expected.loss), places
            assert torch.equal(whole.generate(**inputs, num_beams=2, **GREEDY), said), places
            assert devices.used == {0, 1, 2}
        blocks = (
            whole.model.vision.layers[0],
            whole.model.connector,
            whole.model.decoder.layers[0],
        )
        assert {type(block).__name__ for block in blocks} < {*whole._no_split_modules}


class SeveralDevices(TorchFunctionMode):
    """GPUs as accelerate puts parts of a model on them, acted on a CPU.

    Tensors know of which device they are, `to` moves them, and operations refuse two of different
    devices, as CUDA does. Every module gets its arguments on its own device, as by accelerate's
    hooks.

    Args:
        whole: the model; its own device is that of the image encoder.
        places: device by part, a larger part first.
    """

    def __init__(self, whole: torch.nn.Module, places: dict[str, int]) -> None:
        super().__init__()
        self.tensors = [*whole.parameters(), *whole.buffers()]
        modules: dict[torch.nn.Module, int] = {whole: places["vision"]}
        for name, at in places.items():
            for module in whole.get_submodule(f"model.{name}").modules():
                modules[module] = at
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.place = at
        self.hooks = [
            module.register_forward_pre_hook(
                functools.partial(self.move, at), with_kwargs=True, prepend=True
            )
            for module, at in modules.items()
            if module.state_dict()
        ]
        self.used: set[int] = set()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        for tensor in self.tensors:
            del tensor.place
        super().__exit__(*error)

    def move(self, at, module, *given):
        self.used.add(at)
        device = torch.device("cuda", at)
        return tree_map_only(torch.Tensor, lambda each: each.to(device), given)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = {x.place for x in tensors if getattr(x, "place", None) is not None and x.ndim}
        devices = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        if func is torch.Tensor.device.__get__:
            at = getattr(args[0], "place", None)
            return torch.device("cpu") if at is None else torch.device("cuda", at)
        if func is torch.Tensor.to and len(tensors) == 2:
            at, args = getattr(tensors[1], "place", None), (args[0], tensors[1].dtype)
        elif devices:
            at = devices[0].index
            args = [torch.device("cpu") if x in devices else x for x in args]
            kwargs = {n: torch.device("cpu") if x in devices else x for n, x in kwargs.items()}
        else:
            assert len(places) < 2, f"{func} of tensors on devices {places}"
            at = next(iter(places), None)
        result = func(*args, **kwargs)
        if func is torch.Tensor.to and result is args[0]:
            result = result.view_as(result)
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                each.place = at
        return result


@check
def snippets_of_the_docs_run():
    # A reader's folder: a published export, and a picture of the sample.
    exported = ROOT / "reader/data/base/06_models/exported_pretrain"
    shutil.copytree(OWN, exported / "version", dirs_exist_ok=True)
    (exported / "CURRENT").write_text("version\n")
    sample = ROOT / "reader/data/sample/eval_coco_captions/images/000000.jpg"
    sample.parent.mkdir(parents=True, exist_ok=True)
    picture(1).save(sample)
    os.chdir(ROOT / "reader")
    for code in PLAN["snippets"]:
        place = LLAVA if "Llava" in code else OWN
        scope = {"directory": str(place), "image": picture(1), "transformers": transformers}
        exec(compile(code, "docs/models.md", "exec"), scope)


@check
def stock_llava_shows_the_pixels_of_training():
    reader = transformers.AutoProcessor.from_pretrained(LLAVA, backend="pil")
    text = f"{reader.tokenizer.bos_token}<|image|> a cat"
    inputs = reader(images=[picture(1)], text=[text], return_tensors="pt")
    assert inputs.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert_close(inputs["pixel_values"], EXPECTED["llava"], atol=1e-5, rtol=0)  # rounding of 1/255
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(LLAVA)
    pipe = transformers.pipeline("image-text-to-text", model=stock, processor=reader)
    messages = [user({"image": picture(1)}, "what is it?")]
    chat = pipe.preprocess(transformers.pipelines.image_text_to_text.Chat(messages))
    assert torch.equal(chat["pixel_values"], inputs["pixel_values"])
    messages = [user({"image": picture(1)}, "say <|eos|><|image|><|bos|> a<|pad|>")]
    ids = reader.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
    assert [ids.count(each) for each in reader.tokenizer.all_special_ids].count(0) == 2
    assert ids.count(image_id) == 16
    assert ids.count(tokenizer.bos_token_id) == 1


@check
def the_tokenizer_alone_keeps_typed_tokens_text():
    messages = [
        {"role": "user", "content": "say <|eos|><|image|><|bos|> a<|pad|>"},
        {"role": "assistant", "content": "<|eos|>"},
    ]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


@check
def a_pipeline_without_messages_opens_images_by_its_own_rules():
    pipe: Any = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    for name in ("la.png", "i16.png"):
        inputs = {"images": str(ROOT / "images" / name), "text": "<|image|>"}
        found = pipe.preprocess(inputs)["pixel_values"]
        assert not torch.equal(found, EXPECTED[name])  # as the docs say of transformers


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    os.chdir(WORK)
    results = {}
    for name, function in CHECKS.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                function()
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
    results["version"] = transformers.__version__
    (WORK / "results.json").write_text(json.dumps(results))
