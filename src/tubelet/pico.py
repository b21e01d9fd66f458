"""The pico models' shape: a LLaVA-OneVision of about two million parameters, and a tokenizer that fits it.

Same classes, same files, same code as a 7B model; only the config and the vocabulary are small.
"""

from __future__ import annotations

from typing import Any

PICO_SIZE = 64  # pixels
PICO_FRAMES = 16
IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, VIDEO_TOKEN)

# the same turn structure as LLaVA-OneVision's template on the hub, so that one prompt code serves both
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ '\\n' + message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def pico_tokenizer(n_query_tokens: int = 0, vocab_size: int = 1000) -> Any:
    """A byte-level BPE tokenizer trained on the toy world's sentences; any other text falls back to bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tubelet.spacevllm.prompts import query_token

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\s\w]| ?[^\W\d]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", IMAGE_TOKEN, VIDEO_TOKEN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
    fast.image_token, fast.video_token = IMAGE_TOKEN, VIDEO_TOKEN
    if n_query_tokens:
        fast.add_tokens([query_token(i) for i in range(n_query_tokens)], special_tokens=True)
    return fast


def _corpus() -> list[str]:
    import numpy as np

    from tubelet.tube import TASKS
    from tubelet.world.choreography import SceneConfig, make_scene
    from tubelet.world.tasks import make_questions

    lines: list[str] = []
    for index in range(500):
        scene = make_scene("train", 0, index, SceneConfig(still=index % 2 == 0))
        rng = np.random.default_rng(index)
        for question in make_questions(scene, rng, TASKS, 6):
            lines += [question.query, question.answer, f"find {question.query}", f"see {question.query}"]
    lines += [
        "1.2s-3.4s.",
        "not in this video.",
        "here.",
        "when",
        "user",
        "assistant",
        "system",
        "from 2s to 9s",
    ] * 50
    return lines


def pico_config(tokenizer: Any, hidden: int = 128, layers: int = 6, vision_layers: int = 3) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=PICO_SIZE,
        patch_size=8,
        hidden_act="gelu",  # the erf form: three times as fast as the tanh form on a CPU
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[PICO_SIZE, PICO_SIZE]],
        tie_word_embeddings=True,
    )


def init_pico_vision(base: Any) -> None:
    """Start the small vision tower from what it would otherwise spend its first thousand steps on.

    Patches lose most of their mean colour (a flat ground would drown the shapes on it), and positions start
    as sines of row and column, strong enough to survive the first layers.
    """
    import math

    import torch

    from tubelet.spacevllm.decoder import grid_sinusoid

    embeddings = base.model.vision_tower.embeddings
    with torch.no_grad():
        kernel = embeddings.patch_embedding.weight
        kernel -= 0.8 * kernel.mean(dim=(2, 3), keepdim=True)
        kernel *= 2.0
        table = embeddings.position_embedding.weight
        table.copy_(grid_sinusoid(table.shape[0], table.shape[1], table.device) / math.sqrt(2))
