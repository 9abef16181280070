# %%
import numpy as np
import pandas as pd
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 13

# %%
X, y = make_classification(
    n_samples=12_000, n_features=24, n_informative=9, n_redundant=4, flip_y=0.05, random_state=SEED
)
features = [f"f{i:02d}" for i in range(X.shape[1])]
frame = pd.DataFrame(X, columns=features).assign(target=y)
frame.shape

# %%
frame["target"].value_counts(normalize=True)

# %%
frame.describe().T[["mean", "std", "min", "max"]]

# %%
strongest = frame.corr()["target"].drop("target").abs().sort_values(ascending=False)
strongest.head(8)

# %%
X_train, X_test, y_train, y_test = train_test_split(
    frame[features], frame["target"], test_size=0.25, stratify=frame["target"], random_state=SEED
)
X_train.shape, X_test.shape

# %%
folds = StratifiedKFold(3, shuffle=True, random_state=SEED)
results = {}

# %%
baseline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
results["logistic"] = cross_val_score(baseline, X_train, y_train, cv=folds, scoring="roc_auc")
results["logistic"].mean()

# %%
baseline.fit(X_train, y_train)
coefficients = pd.Series(baseline[-1].coef_[0], index=features).sort_values()
coefficients

# %%
forest = RandomForestClassifier(60, max_depth=12, n_jobs=2, random_state=SEED)
results["forest"] = cross_val_score(forest, X_train, y_train, cv=folds, scoring="roc_auc")
results["forest"].mean()

# %%
forest.fit(X_train, y_train)
importance = pd.Series(forest.feature_importances_, index=features).nlargest(10)
importance

# %%
grid = {"learning_rate": [0.05, 0.15], "max_leaf_nodes": [15, 31]}
search = GridSearchCV(
    HistGradientBoostingClassifier(max_iter=80, random_state=SEED), grid, cv=folds, scoring="roc_auc"
)
search.fit(X_train, y_train)
search.best_params_, search.best_score_

# %%
table = pd.DataFrame(search.cv_results_).sort_values("rank_test_score")
table[["params", "mean_test_score", "std_test_score", "mean_fit_time"]]

# %%
results["boosting"] = table.filter(like="split").iloc[0].to_numpy(float)
pd.DataFrame({name: np.asarray(scores) for name, scores in results.items()}).describe()

# %%
finer = {"max_depth": [8, 14], "min_samples_leaf": [1, 8]}
forest_search = GridSearchCV(
    RandomForestClassifier(40, n_jobs=2, random_state=SEED), finer, cv=folds, scoring="roc_auc"
)
forest_search.fit(X_train, y_train)
forest_search.best_params_

# %%
models = {
    "logistic": baseline,
    "forest": forest_search.best_estimator_,
    "boosting": search.best_estimator_,
}
auc = {name: roc_auc_score(y_test, m.predict_proba(X_test)[:, 1]) for name, m in models.items()}
auc

# %%
best_name = max(auc, key=auc.get)
best = models[best_name]
predicted = best.predict(X_test)
confusion_matrix(y_test, predicted)

# %%
print(classification_report(y_test, predicted))

# %%
probability = best.predict_proba(X_test)[:, 1]
bins = pd.cut(probability, np.linspace(0, 1, 11))
calibration = pd.Series(y_test.to_numpy()).groupby(bins, observed=True).agg(["mean", "size"])
calibration

# %%
thresholds = np.linspace(0.05, 0.95, 19)
costs = [
    5 * np.sum((probability < t) & (y_test == 1)) + np.sum((probability >= t) & (y_test == 0))
    for t in thresholds
]
threshold = float(thresholds[int(np.argmin(costs))])
threshold

# %%
wrong = X_test[(probability >= threshold) != (y_test == 1)]
wrong.describe().T["mean"].head()

# %%
summary = {"model": best_name, "auc": auc[best_name], "threshold": threshold, "wrong": len(wrong)}
summary
