"""Takes a PyTorch network and a folder of images to tables and a page, report.html."""

# --8<-- [start:stand-ins]
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import bridge
import jaxcurv

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
images = np.random.default_rng(0).normal(size=(40, 28, 28, 1)).astype(np.float32)
labels = network(torch.from_numpy(images)).argmax(1).numpy()  # so that this network is right
for number, (image, label) in enumerate(zip(images, labels, strict=True)):
    Path("pngs/test", f"class {label}").mkdir(parents=True, exist_ok=True)
    pixels = (40 * image[..., 0] + 128).clip(0, 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(f"pngs/test/class {label}/{number}.png")
# --8<-- [end:stand-ins]

# --8<-- [start:path]
pngs = jaxcurv.image_folder("pngs/test", mean=128 / 255, std=40 / 255, channels=1)
scores = bridge.score(network, pngs)
predictions = bridge.simulate(network, pngs, profiles="adc+wnoise+pcm", times=[20, 3600])
study = bridge.study(scores, predictions, pngs)
print(study.failures()[["path", "class", "curvature", "failed_share"]])  # after 3,600 s
print(study.predictors().query("denominator == 'correct'")[["profile", "predictor", "auroc"]])
study.report("report.html")  # needs jaxcurv[experiments]
# --8<-- [end:path]
