#!/bin/sh
# The guide's command: all single-image modes with the deformable projector, under DeepSpeed's launcher.
# Further words go to `psalm train`. CUDA devices: GPUS=localhost:0,1, or CUDA_VISIBLE_DEVICES=0,1, else the first one.
set -eu
[ -n "${GPUS:-}${CUDA_VISIBLE_DEVICES:-}" ] || GPUS=localhost:0
# DeepSpeed's launcher takes the devices of CUDA_VISIBLE_DEVICES where it has no --include.
exec uv run --no-sync deepspeed --no_local_rank ${GPUS:+--include "$GPUS"} --module psalm train \
    --preset deformable \
    --mm_projector_type deformable --mm_hidden_dim 256 --mm_n_heads 8 --mm_n_points 4 --swin_type base \
    --seg_task panoptic --region_mask_type 'box_visual_prompt_mask||scribble_visual_prompt_mask||point_visual_prompt_mask' \
    --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --learning_rate 6e-5 --num_train_epochs 10 \
    --output_dir runs/psalm-deformable "$@"
