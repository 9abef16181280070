# %%
import collections
import random
import re

import numpy as np
import pandas as pd
from sklearn.decomposition import NMF, TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

random.seed(5)

# %%
GOOD = "great lovely excellent solid quick friendly fresh bright comfortable reliable".split()
BAD = "broken slow noisy rude stale dim cheap awful late dirty".split()
THINGS = "room screen battery meal service kettle train bed sound parcel lamp chair".split()
FILL = "the a was really very quite and but with for my we it i this that again after".split()


def review(stars):
    words = []
    for _ in range(random.randint(20, 90)):
        roll = random.random()
        if roll < 0.18:
            words.append(random.choice(GOOD if random.random() < stars / 5 else BAD))
        elif roll < 0.4:
            words.append(random.choice(THINGS))
        else:
            words.append(random.choice(FILL))
    return " ".join(words).capitalize() + random.choice([".", "!", " :)", " http://x.org/a?b=1"])


stars = [random.choice([1, 2, 4, 5]) for _ in range(6_000)]
texts = [review(each) for each in stars]
texts[0]

# %%
len(texts), sum(map(len, texts)) / 1e6

# %%
URL = re.compile(r"https?://\S+")
WORD = re.compile(r"[a-z]+")


def tokens(text):
    return WORD.findall(URL.sub("", text.lower()))


# %%
tokenized = [tokens(text) for text in texts]
tokenized[0][:10]

# %%
counts = collections.Counter(word for words in tokenized for word in words)
counts.most_common(8)

# %%
bigrams = collections.Counter(pair for words in tokenized for pair in zip(words, words[1:]))
bigrams.most_common(5)

# %%
index = collections.defaultdict(set)
for number, words in enumerate(tokenized):
    for word in set(words):
        index[word].add(number)
len(index), len(index["broken"])

# %%
def find(*words):
    return sorted(set.intersection(*(index[word] for word in words)))


find("broken", "kettle", "awful")[:5]

# %%
links = [URL.findall(text) for text in texts]
sum(map(bool, links))

# %%
frame = pd.DataFrame({"stars": stars, "text": texts})
frame["words"] = [len(words) for words in tokenized]
frame["loud"] = frame["text"].str.endswith("!")
frame.groupby("stars")[["words", "loud"]].mean()

# %%
stop = {word for word, _ in counts.most_common(18)}
vectorizer = TfidfVectorizer(stop_words=sorted(stop), ngram_range=(1, 2), min_df=5)
matrix = vectorizer.fit_transform(texts)
matrix.shape, matrix.nnz

# %%
target = np.array(stars) >= 4
X_train, X_test, y_train, y_test = train_test_split(matrix, target, random_state=0)
classifier = LogisticRegression(C=3, max_iter=300)
classifier.fit(X_train, y_train)
accuracy_score(y_test, classifier.predict(X_test))

# %%
names = vectorizer.get_feature_names_out()
ranked = np.argsort(classifier.coef_[0])
list(names[ranked[:8]]), list(names[ranked[-8:]])

# %%
svd = TruncatedSVD(40, random_state=0)
embedded = svd.fit_transform(matrix)
svd.explained_variance_ratio_.sum()

# %%
def nearest(text, count=3):
    vector = svd.transform(vectorizer.transform([text]))[0]
    distance = embedded @ vector / (np.linalg.norm(embedded, axis=1) * np.linalg.norm(vector))
    return [texts[i] for i in np.argsort(-distance)[:count]]


nearest("the battery was awful")

# %%
counter = CountVectorizer(stop_words=sorted(stop), min_df=10)
topics = NMF(6, random_state=0, max_iter=150).fit(counter.fit_transform(texts))
words = counter.get_feature_names_out()
[list(words[np.argsort(-part)[:4]]) for part in topics.components_]

# %%
tokenized[0].append("checked")
counts["checked"] += 1
index["checked"].add(0)

# %%
lengths = np.array([len(each) for each in tokenized])
np.percentile(lengths, [5, 50, 95])

# %%
replacements = {r"\bquick\b": "fast", r"\blovely\b": "nice"}
cleaned = texts
for pattern, replacement in replacements.items():
    cleaned = [re.sub(pattern, replacement, text, flags=re.I) for text in cleaned]
sum(a != b for a, b in zip(texts, cleaned))

# %%
wrong = [i for i in np.flatnonzero(classifier.predict(matrix) != target)]
frame.loc[wrong, "stars"].value_counts()

# %%
summary = {"reviews": len(texts), "words": len(counts), "wrong": len(wrong)}
summary
