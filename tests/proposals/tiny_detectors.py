"""Tiny random detectors and trackers in the hub's layout: config, weights, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_owlv2(folder: Path) -> Path:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(16)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def write_grounding_dino(folder: Path) -> Path:
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    torch.manual_seed(0)
    words = {
        f"[unused{k}]": k for k in range(1100)
    }  # the model knows [CLS], [SEP], "." and "?" by their numbers
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    said = dict(enumerate(("a", "person", "red", "circle", "dog", "green", "square"), start=1040))
    vocabulary = [(special | said).get(k, name) for name, k in words.items()]
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(vocabulary)})
    backbone = {"model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8}
    backbone |= {
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_indices": [2, 3, 4],
    }
    text = {"model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,  # its box heads are tied over the layers: one has nothing to tie
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        max_text_len=32,
        disable_custom_kernels=True,
    )
    model = GroundingDinoForObjectDetection(config)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_sam2(folder: Path) -> Path:
    from transformers import (
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoMaskDecoderConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
    )

    torch.manual_seed(0)
    backbone = {"model_type": "sam2_hiera_det_model", "image_size": [64, 64], "hidden_size": 8}
    backbone |= {
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
    }
    backbone |= {"num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 4, 4, 2]}
    backbone |= {"global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]}
    vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 128}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = Sam2VideoConfig(
        vision_config={"model_type": "sam2_vision_model", **vision},
        prompt_encoder_config={"hidden_size": 128, "image_size": 64, "mask_input_channels": 4},
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=128, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
        ),
        image_size=64,
        memory_attention_rope_feat_sizes=[4, 4],
        **_memory(128),
    )
    _believing(Sam2VideoModel(config)).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16}),
        Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder


def write_sam3(folder: Path) -> Path:
    from transformers import (
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer(32)
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
    }
    backbone |= {"num_attention_heads": 2, "image_size": 56, "patch_size": 14, "window_size": 2}
    backbone |= {"global_attn_indexes": [0], "pretrain_image_size": 28}
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 128}
    small = {"hidden_size": 128, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    detector = {
        "model_type": "sam3",
        "vision_config": {**vision, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "eos_token_id": tokenizer.eos_token_id,
        },
        "geometry_encoder_config": small,
        "detr_encoder_config": small,
        "detr_decoder_config": {**small, "num_queries": 6},
        "mask_decoder_config": {"hidden_size": 128, "num_attention_heads": 2},
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": {**vision, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        "prompt_encoder_config": {
            "hidden_size": 128,
            "image_size": 56,
            "patch_size": 14,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": {
            "hidden_size": 128,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
        "image_size": 56,
        **_memory(128),
    }
    config = Sam3VideoConfig(
        detector_config=detector,
        tracker_config=tracker,
        low_res_mask_size=16,
        score_threshold_detection=0.0,
        new_det_thresh=0.0,
        hotstart_delay=0,
        hotstart_unmatch_thresh=0,
        hotstart_dup_thresh=0,
        fill_hole_area=0,
    )
    _believing(Sam3VideoModel(config)).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    Sam3VideoProcessor(
        Sam3ImageProcessor(size=size, mask_size={"height": 16, "width": 16}),
        Sam2VideoVideoProcessor(size=size),
        tokenizer,
    ).save_pretrained(folder)
    return folder


def _believing(model: Any) -> Any:
    """The model, sure that what it follows is there, and with masks that are not all one sign."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "pred_obj_score_head" in name and name.endswith("proj_out.bias"):
                weight.fill_(5.0)
            elif weight.ndim >= 2:
                weight.mul_(3.0)
    return model


def _memory(width: int) -> dict[str, Any]:
    return {
        "num_maskmem": 3,
        "max_object_pointers_in_encoder": 2,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": 64,  # its memory attention reads 64
        "mask_downsampler_embed_dim": width,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 32,
    }


def _clip_tokenizer(length: int) -> Any:
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    order = [*words[2:], *words[:2]]  # the model reads the sentence at its highest number: the end
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(order)}, merges=[], model_max_length=length)
