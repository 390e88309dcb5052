"""Diffusers makes an image from noise with a tiny random UNet on "cuda"."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=8,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(8, 8),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).to("cuda")
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator("cpu").manual_seed(0)
images = pipeline(num_inference_steps=2, generator=generator, output_type="np").images
assert images.shape == (1, 8, 8, 3), images.shape
assert next(pipeline.unet.parameters()).is_cuda
print("device", pipeline.device)
