# %%
import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
rng = np.random.default_rng(3)

# %%
def blob(kind, count):
    """Images of 28 x 28 with a shape for each kind, moved, scaled and with noise."""
    ys, xs = np.mgrid[0:28, 0:28]
    images = np.zeros((count, 28, 28), np.uint8)
    for i in range(count):
        cy, cx = rng.normal(14, 2, 2)
        size = rng.uniform(4, 8)
        dy, dx = (ys - cy) / size, (xs - cx) / size
        radius = np.hypot(dy, dx)
        shape = [
            radius < 1,
            (radius < 1) & (radius > 0.6),
            (abs(dy) < 0.3) & (abs(dx) < 1.2),
            (abs(dx) < 0.3) & (abs(dy) < 1.2),
            abs(dy - dx) < 0.4,
        ][kind] & (radius < 2)
        images[i] = shape * rng.integers(150, 255)
        images[i] += (rng.random((28, 28)) < 0.02).astype(np.uint8) * 40
    return images


# %%
images = np.concatenate([blob(kind, 4000) for kind in range(5)])
labels = np.repeat(np.arange(5), 4000)
images.shape, images.nbytes / 1e6

# %%
order = rng.permutation(len(images))
x = torch.from_numpy(images[order]).float().div_(255).unsqueeze(1)
y = torch.from_numpy(labels[order])
x.mean(), x.std()

# %%
train = TensorDataset(x[:16_000], y[:16_000])
valid = TensorDataset(x[16_000:], y[16_000:])
len(train), len(valid)

# %%
BATCH = 128
train_loader = DataLoader(train, BATCH, shuffle=True)
valid_loader = DataLoader(valid, 512)

# %%
class Net(nn.Module):
    def __init__(self, width=16, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.fc1 = nn.Linear(2 * width * 49, 256)
        self.fc2 = nn.Linear(256, classes)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm(self.conv2(x)))
        return self.fc2(F.dropout(F.relu(self.fc1(x.flatten(1))), 0.2, self.training))


model = Net()
sum(p.numel() for p in model.parameters())

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, 4e-3, epochs=8, steps_per_epoch=len(train_loader)
)
history = []

# %%
def evaluate(model, loader):
    model.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for xb, yb in loader:
            out = model(xb)
            loss += F.cross_entropy(out, yb, reduction="sum").item()
            right += (out.argmax(1) == yb).sum().item()
            count += len(yb)
    return loss / count, right / count


def epoch():
    model.train()
    for xb, yb in train_loader:
        loss = F.cross_entropy(model(xb), yb)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    history.append(evaluate(model, valid_loader))
    return history[-1]


# %%
evaluate(model, valid_loader)

# %%
epoch()

# %%
epoch()

# %%
best_state = copy.deepcopy(model.state_dict())
epoch()

# %%
scheduler.get_last_lr(), optimizer.param_groups[0]["betas"]

# %%
epoch()

# %%
epoch()

# %%
[round(accuracy, 4) for _, accuracy in history]

# %%
if history[-1][1] > history[-2][1]:
    best_state = copy.deepcopy(model.state_dict())
history[-1]

# %%
epoch()

# %%
epoch()

# %%
with torch.no_grad():
    model.eval()
    logits = torch.cat([model(xb) for xb, _ in valid_loader])
predicted = logits.argmax(1)
confusion = torch.zeros(5, 5, dtype=torch.long)
for truth, guess in zip(y[16_000:], predicted):
    confusion[truth, guess] += 1
confusion

# %%
hard = F.cross_entropy(logits, y[16_000:], reduction="none").topk(16)
hard_images = x[16_000:][hard.indices]
hard.values[:4]

# %%
filters = model.conv1.weight.detach().squeeze(1).numpy().copy()
filters.shape

# %%
model.load_state_dict(best_state)
evaluate(model, valid_loader)

# %%
perplexity = math.exp(history[-1][0])
summary = {"accuracy": history[-1][1], "perplexity": perplexity, "epochs": len(history)}
summary
