# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

sns.set_theme(style="whitegrid")
rng = np.random.default_rng(21)

# %%
N = 6_000
stations = ["north", "harbour", "airport", "hills"]
days = pd.date_range("2022-01-01", periods=N // 4, freq="D")
weather = pd.concat(
    [
        pd.DataFrame(
            {
                "station": station,
                "day": days,
                "temperature": np.round(
                    10 + i + 9 * np.sin((days.dayofyear - 100) / 365 * 2 * np.pi)
                    + rng.normal(0, 3, len(days)), 1
                ),
                "rain": np.round(rng.gamma(0.4, 6, len(days)), 1),
                "wind": np.round(rng.weibull(2, len(days)) * 5, 1),
            }
        )
        for i, station in enumerate(stations)
    ],
    ignore_index=True,
)
weather.head()

# %%
weather.groupby("station").mean(numeric_only=True)

# %%
fig, ax = plt.subplots(figsize=(9, 4))
for station, part in weather.groupby("station"):
    ax.plot(part["day"], part["temperature"].rolling(14).mean(), label=station)
ax.legend()
ax.set_title("temperature, two weeks' mean")

# %%
fig.savefig("temperature.png")
ax.set_ylim(-5, 35)
fig

# %%
weather["month"] = weather["day"].dt.month
monthly = weather.groupby(["station", "month"])[["temperature", "rain", "wind"]].mean()
monthly.head()

# %%
heat = weather.pivot_table(index="station", columns="month", values="rain", aggfunc="sum")
heat_axes = sns.heatmap(heat, cmap="Blues")

# %%
box = sns.catplot(weather, x="month", y="temperature", hue="station", kind="box", aspect=2)

# %%
sns.histplot(weather, x="wind", hue="station", element="step")
plt.title("wind")

# %%
pairs = sns.pairplot(
    weather.sample(600, random_state=1), vars=["temperature", "rain", "wind"], hue="station"
)

# %%
def anomaly(group):
    normal = group.groupby(group["day"].dt.dayofyear)["temperature"].transform("mean")
    return group["temperature"] - normal


weather["anomaly"] = weather.groupby("station", group_keys=False)[
    ["day", "temperature"]
].apply(anomaly)
weather["anomaly"].describe()

# %%
grid, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
for panel, (station, part) in zip(axes.flat, weather.groupby("station")):
    panel.vlines(part["day"], 0, part["anomaly"], np.where(part["anomaly"] > 0, "r", "b"))
    panel.set_title(station)

# %%
for panel in axes.flat:
    panel.axhline(0, color="k", lw=0.5)
grid.tight_layout()
grid

# %%
extremes = weather.loc[weather.groupby("station")["anomaly"].idxmax()]
extremes

# %%
for panel, (_, row) in zip(axes.flat, extremes.sort_values("station").iterrows()):
    panel.annotate("max", (row["day"], row["anomaly"]))
grid

# %%
joint = sns.jointplot(weather, x="temperature", y="wind", kind="hex")

# %%
lags = range(1, 60)
correlogram = {
    station: [part["anomaly"].autocorr(lag) for lag in lags]
    for station, part in weather.groupby("station")
}
lag_figure, lag_axes = plt.subplots()
for station, values in correlogram.items():
    lag_axes.plot(lags, values, label=station)
lag_axes.legend()

# %%
palette = dict(zip(stations, sns.color_palette("colorblind")))
wet = weather[weather["rain"] > 20]
wet.groupby("station").size().plot.bar(color=[palette[s] for s in sorted(palette)])

# %%
figures = {"temperature": fig, "anomaly": grid, "lags": lag_figure}
[len(each.axes) for each in figures.values()]

# %%
plt.close("all")
summary = weather.groupby("station")[["temperature", "rain", "wind", "anomaly"]].agg(["mean", "max"])
summary.round(2)
