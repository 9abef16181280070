# %%
import numpy as np
import pandas as pd

pd.set_option("display.width", 120)
rng = np.random.default_rng(7)

# %%
N = 120_000
countries = ["DE", "FR", "US", "GB", "ES", "IT", "NL", "PL"]
channels = ["web", "app", "store", "phone"]
orders = pd.DataFrame(
    {
        "order_id": np.arange(1, N + 1),
        "customer_id": rng.zipf(1.3, N) % 20_000,
        "placed": pd.Timestamp("2024-01-01")
        + pd.to_timedelta(np.sort(rng.integers(0, 365 * 86_400, N)), unit="s"),
        "country": rng.choice(countries, N, p=[0.3, 0.15, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05]),
        "channel": rng.choice(channels, N, p=[0.5, 0.3, 0.15, 0.05]),
        "items": rng.poisson(2.2, N) + 1,
        "price": np.round(rng.lognormal(3.1, 0.8, N), 2),
        "discount": rng.choice([0.0, 0.0, 0.0, 0.05, 0.1, 0.2], N),
    }
)
orders.loc[rng.random(N) < 0.02, "price"] = np.nan
orders.head()

# %%
orders.info()

# %%
orders.describe(include="all").T

# %%
missing = orders.isna().mean().sort_values(ascending=False)
missing

# %%
duplicated = orders.duplicated(["customer_id", "placed"]).sum()
duplicated

# %%
customers = pd.DataFrame(
    {
        "customer_id": np.arange(20_000),
        "segment": rng.choice(["private", "business", "reseller"], 20_000, p=[0.8, 0.15, 0.05]),
        "since": pd.Timestamp("2019-01-01")
        + pd.to_timedelta(rng.integers(0, 1800, 20_000), unit="D"),
    }
)
customers.sample(5, random_state=1)

# %%
orders["price"] = orders["price"].fillna(orders.groupby("country")["price"].transform("median"))
orders["price"].isna().sum()

# %%
orders["total"] = (orders["items"] * orders["price"] * (1 - orders["discount"])).round(2)
orders["total"].describe()

# %%
orders["month"] = orders["placed"].dt.to_period("M").astype(str)
orders["weekday"] = orders["placed"].dt.day_name()
orders["hour"] = orders["placed"].dt.hour

# %%
by_month = orders.groupby("month").agg(orders=("order_id", "size"), total=("total", "sum"))
by_month

# %%
by_hour = orders.pivot_table(index="weekday", columns="hour", values="total", aggfunc="mean")
by_hour.round(1).iloc[:, :6]

# %%
quantiles = orders.groupby("country")["total"].quantile([0.1, 0.5, 0.9, 0.99]).unstack()
quantiles

# %%
limit = orders["total"].quantile(0.999)
outliers = orders[orders["total"] > limit]
len(outliers), limit

# %%
clean = orders[orders["total"] <= limit].copy()
clean.shape

# %%
merged = clean.merge(customers, on="customer_id", how="left")
merged["tenure"] = (merged["placed"] - merged["since"]).dt.days
merged.head(3)

# %%
merged.groupby("segment")["total"].agg(["count", "mean", "std", "sum"])

# %%
del clean
merged["country"] = merged["country"].astype("category")
merged["channel"] = merged["channel"].astype("category")
merged.memory_usage(deep=True).sum() / 1e6

# %%
rfm = merged.groupby("customer_id").agg(
    last=("placed", "max"), frequency=("order_id", "size"), money=("total", "sum")
)
rfm["recency"] = (merged["placed"].max() - rfm["last"]).dt.days
rfm.describe()

# %%
def score(column, ascending=True):
    return pd.qcut(column.rank(method="first", ascending=ascending), 5, labels=False) + 1


rfm["score"] = score(rfm["recency"], False) * 100 + score(rfm["frequency"]) * 10 + score(rfm["money"])
rfm["score"].value_counts().head()

# %%
best = rfm.nlargest(50, "money")
worst = rfm.nsmallest(50, "money")
best["money"].mean() / worst["money"].mean()

# %%
daily = merged.set_index("placed")["total"].resample("D").sum()
trend = daily.rolling(28, center=True).mean()
season = (daily - trend).groupby(daily.index.dayofweek).mean()
season

# %%
share = merged.groupby(["month", "channel"], observed=True)["total"].sum().unstack()
share = share.div(share.sum(axis=1), axis=0)
share.tail(3)

# %%
first = merged.groupby("customer_id")["placed"].min().dt.to_period("M").rename("cohort")
cohorts = merged.join(first, on="customer_id")
cohorts["age"] = (
    cohorts["placed"].dt.to_period("M").astype("int64") - cohorts["cohort"].astype("int64")
)
retention = cohorts.groupby(["cohort", "age"])["customer_id"].nunique().unstack()
retention.iloc[:4, :4]

# %%
del cohorts
numbers = merged[["items", "price", "discount", "total", "tenure", "hour"]]
correlation = numbers.corr(method="spearman")
correlation.round(2)

# %%
samples = [
    merged["total"].sample(frac=1.0, replace=True, random_state=seed).mean() for seed in range(60)
]
low, high = np.percentile(samples, [2.5, 97.5])
low, high

# %%
report = {
    "revenue": float(merged["total"].sum()),
    "interval": (float(low), float(high)),
    "best month": by_month["total"].idxmax(),
    "by segment": merged.groupby("segment")["total"].sum().to_dict(),
}
report
