# %%
import numpy as np
import pandas as pd
from scipy import signal

rng = np.random.default_rng(11)
RATE = 200  # samples a second

# %%
CHANNELS, SECONDS = 64, 1800
time = np.arange(SECONDS * RATE, dtype=np.float32) / RATE
time.shape

# %%
raw = rng.normal(0, 40, (CHANNELS, SECONDS * RATE)).astype(np.int16)
for channel in range(CHANNELS):
    raw[channel] += (80 * np.sin(2 * np.pi * (8 + channel / 20) * time)).astype(np.int16)
    raw[channel] += (200 * np.sin(2 * np.pi * 50 * time)).astype(np.int16)
raw.nbytes / 1e6

# %%
names = [f"ch{channel:02d}" for channel in range(CHANNELS)]
scale = pd.Series(rng.normal(0.1, 0.002, CHANNELS).round(5), index=names)
scale.head()

# %%
volts = raw.astype(np.float32) * scale.to_numpy(np.float32)[:, None]
volts.nbytes / 1e6

# %%
volts.mean(axis=1)[:4], volts.std(axis=1)[:4]

# %%
dead = [5, 17]
volts[dead] = 0.0

# %%
b, a = signal.iirnotch(50, 30, RATE)
for channel in range(0, 16):
    volts[channel] = signal.filtfilt(b, a, volts[channel])

# %%
for channel in range(16, 40):
    volts[channel] = signal.filtfilt(b, a, volts[channel])

# %%
for channel in range(40, CHANNELS):
    volts[channel] = signal.filtfilt(b, a, volts[channel])

# %%
frequencies, power = signal.welch(volts, RATE, nperseg=1024)
power.shape

# %%
peaks = pd.Series(frequencies[power[:, 10:].argmax(axis=1) + 10], index=names)
peaks.describe()

# %%
events = np.sort(rng.choice(SECONDS * RATE - 400, 300, replace=False))
labels = rng.integers(0, 3, 300)
pd.Series(labels).value_counts()

# %%
epochs = np.stack([volts[:, start : start + 200] for start in events])
epochs.shape, epochs.nbytes / 1e6

# %%
epochs -= epochs.mean(axis=2, keepdims=True)

# %%
average = np.stack([epochs[labels == kind].mean(axis=0) for kind in range(3)])
average.shape

# %%
bad = np.ptp(epochs, axis=2).max(axis=1) > np.quantile(np.ptp(epochs, axis=2).max(axis=1), 0.95)
bad.sum()

# %%
kept = epochs[~bad]
kept_labels = labels[~bad]
kept.shape

# %%
sos = signal.butter(4, [6, 14], "bandpass", fs=RATE, output="sos")
band = signal.sosfiltfilt(sos, kept, axis=2).astype(np.float32)
features = np.log(band.var(axis=2) + 1e-6)
features.shape

# %%
covariance = np.cov(volts[:, ::20])
values, vectors = np.linalg.eigh(covariance)
values[-5:]

# %%
components = (vectors[:, -8:].T @ volts).astype(np.float32)
components.nbytes / 1e6

# %%
volts[:, :2000] = 0.0
volts[:, -2000:] = 0.0

# %%
centroids = np.stack([features[kept_labels == kind].mean(axis=0) for kind in range(3)])
guess = ((features[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
accuracy = float((guess == kept_labels).mean())
accuracy

# %%
summary = {"channels": CHANNELS, "dead": dead, "bad": int(bad.sum()), "accuracy": accuracy}
summary
