"""The 141 library classes that Kishu's documentation names, and how each is made and compared.

Source of the list: the documentation of Kishu 0.3.4, "supported libraries". Where it names a module
(`scipy.stats`), an object of that module's is made, or more of them. Modules of Python's own,
which it lists under a library, are under `python` here.

A case is three pieces of a notebook: `make` binds `x`; `value` is an expression whose value is plain
data, and another one after a change; `change` changes the object through its other name, `alias`.
What cannot change (a date, a pattern) lies in a list or dict, which can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One class. `note`: what is to be known of it; `live`: why no pickle can hold it."""

    name: str
    make: str
    value: str
    change: str
    note: str = ""
    live: str = ""
    listed: bool = True  # by Kishu's documentation; else one more, which came up beside it


@dataclass(frozen=True)
class Library:
    """`setup` is a cell that runs before each case; `group` is the environment it shares."""

    name: str
    cases: list[Case]
    setup: str = ""
    requires: tuple[str, ...] = ()  # its name, if nothing is said here
    group: str = "common"
    package: str = ""  # whose version is shown, its name if nothing is said here


PYTHON = Library(
    "python",
    [
        Case(
            "ast",
            "import ast\nx = ast.parse('a = [1, 2]\\nb = a')",
            "ast.dump(x)",
            "alias.body.pop()",
        ),
        Case(
            "copy",
            "import copy\nx = {'f': copy.deepcopy, 'module': copy, 'made': copy.copy([1, [2]])}",
            "[x['f'](x['made']), x['module'].__name__]",
            "alias['made'][1].append(3)",
        ),
        Case(
            "datetime.time",
            "import datetime\nx = [datetime.time(12, 30, 1, tzinfo=datetime.timezone.utc)]",
            "[each.isoformat() for each in x]",
            "alias.append(datetime.time(7))",
        ),
        Case(
            "datetime.timedelta",
            "import datetime\nx = [datetime.timedelta(days=3, seconds=4, microseconds=5)]",
            "[each.total_seconds() for each in x]",
            "alias.append(datetime.timedelta(hours=-7))",
        ),
        Case(
            "hashlib",
            "import hashlib\nx = {'f': hashlib.sha256, 'known': {hashlib.md5(b'1').digest()}}",
            "[x['f'](b'2').hexdigest(), x['known']]",
            "alias['known'].add(hashlib.sha256(b'3').digest())",
            note="functions and digests",
        ),
        Case(
            "hashlib: a hash that was begun",
            "import hashlib\nx = hashlib.sha256(b'1')",
            "x.hexdigest()",
            "alias.update(b'2')",
            live="its state is in OpenSSL, which gives it to nobody",
            listed=False,
        ),
        Case(
            "itertools",
            "import copy, itertools\nx = itertools.cycle([1, 2, 3])\n"
            "more = [itertools.count(5, 2), itertools.product('ab', repeat=2)]\nnext(more[0])",
            "[list(itertools.islice(copy.deepcopy(each), 4)) for each in [x, *more]]",
            "next(alias)",
        ),
        Case(
            "json",
            "import json\nx = json.JSONEncoder(indent=2, sort_keys=True)\n"
            "more = {'f': json.dumps, 'read': json.loads('{\"a\": [1, null]}')}",
            "[x.encode(more['read']), more['f'](more['read'])]",
            "alias.sort_keys = False\nmore['read']['0'] = 1",
        ),
        Case(
            "json: JSONDecoder",
            "import json\nx = json.JSONDecoder(parse_float=str)",
            "[x.decode('[1.50, 2]'), x.strict]",
            "alias.strict = False",
            listed=False,
        ),
        Case(
            "pickle",
            "import pickle\nx = {'f': pickle.loads, 'bytes': [pickle.dumps([1, 2])]}",
            "[x['f'](each) for each in x['bytes']]",
            "alias['bytes'].append(pickle.dumps({'a': 1}))",
        ),
        Case(
            "random.Random",
            "import random\nx = random.Random(3)\nx.gauss(0, 1)",
            "x.getstate()",
            "alias.random()",
        ),
        Case(
            "re.Pattern",
            "import re\nx = [re.compile(r'(\\w+)@(?P<host>\\w+)', re.I)]",
            "[[each.pattern, each.flags, each.findall('a@B c@d')] for each in x]",
            "alias.append(re.compile('c'))",
        ),
        Case(
            "urllib.request.Request",
            "import urllib.request\n"
            "x = urllib.request.Request('http://localhost/a?b=1', b'c', {'D': 'e'})",
            "[x.full_url, x.data, x.header_items(), x.get_method()]",
            "alias.add_header('F', 'g')",
        ),
        Case(
            "uuid.UUID",
            "import uuid\nx = [uuid.uuid4()]",
            "[each.hex for each in x]",
            "alias.append(uuid.uuid4())",
        ),
        Case(
            "pathlib.PosixPath",
            "import pathlib\nx = [pathlib.PosixPath('/a/b.txt')]",
            "[[str(each), each.suffix] for each in x]",
            "alias.append(alias[0].parent)",
        ),
        Case(
            "typing",
            "import typing\nT = typing.TypeVar('T', bound=int)\n"
            "class Box(typing.Generic[T]):\n    held: 'typing.Optional[T]' = None\n"
            "class Pair(typing.NamedTuple):\n    a: int\n    b: 'str | None' = None\n"
            "x = {'hints': [typing.List[int], typing.Optional[Box[int]], T], 'pair': Pair(1)}",
            "[*map(str, x['hints']), x['pair']._asdict(), str(typing.get_type_hints(Box)), "
            "x['hints'][2] is T, x['hints'][1] == typing.Optional[Box[int]]]",
            "alias['hints'].append(typing.Callable[[T], str])",
        ),
    ],
    requires=("numpy",),
)

NUMPY = Library(
    "numpy",
    [
        Case(
            "numpy.ndarray",
            "x = np.arange(12.0).reshape(3, 4)\nview = x[1:, ::2]",
            "[x, view, bool(np.shares_memory(x, view))]",
            "alias[1, 0] = -1",
        )
    ],
    setup="import numpy as np",
)

ARROW = Library(
    "arrow",
    [
        Case(
            "arrow.arrow.Arrow",
            "x = [arrow.get('2024-05-06T07:08:09+02:00'), arrow.get(0, tzinfo='Europe/Paris')]",
            "[[each.isoformat(), str(each.tzinfo), each.shift(months=3).isoformat()] for each in x]",
            "alias.append(arrow.get('2025-01-01'))",
        )
    ],
    setup="import arrow",
)

_IMAGE = "image = np.add.outer(np.arange(9.0), np.arange(9.0) ** 2)\n"
ASTROPY = Library(
    "astropy",
    [
        Case(
            "astropy.convolution.Box2DKernel",
            "from astropy.convolution import Box2DKernel, convolve\nx = Box2DKernel(3)\n" + _IMAGE,
            "[x.array, convolve(image, x), x.separable]",
            "alias._array = alias.array * 2",
        ),
        Case(
            "astropy.convolution.Gaussian2DKernel",
            "from astropy.convolution import Gaussian2DKernel\nx = Gaussian2DKernel(1.5)",
            "[x.array, x.model.amplitude.value, x.truncation]",
            "alias.normalize('peak')",
        ),
        Case(
            "astropy.io.fits.HDUList",
            "from astropy.io import fits\n"
            + _IMAGE
            + "x = fits.HDUList([fits.PrimaryHDU(image), fits.ImageHDU(image[:3], name='cut')])",
            "[[each.name, each.header.tostring(), each.data] for each in x]",
            "alias['cut'].data[0, 0] = 99",
        ),
        Case(
            "astropy.io.fits.PrimaryHDU",
            "from astropy.io import fits\n" + _IMAGE + "x = fits.PrimaryHDU(image)",
            "[x.header.tostring(), x.data]",
            "alias.header['OBSERVER'] = 'Galileo'",
        ),
        Case(
            "astropy.modeling.fitting.LinearLSQFitter",
            "from astropy.modeling import fitting, models\n"
            "x = fitting.LinearLSQFitter(calc_uncertainties=True)\n"
            "points = np.arange(9.0)\nline = x(models.Linear1D(), points, points * 2 + 1)",
            "[line.parameters, x.fit_info['rank'], x.fit_info['singular_values']]",
            "line = alias(models.Polynomial1D(2), points, points ** 2)",
        ),
        *(
            Case(
                f"astropy.modeling.{name}",
                f"from astropy.modeling import models\nx = {made}",
                *rest,
            )
            for name, made, *rest in (
                (
                    "functional_models.Ellipse2D",
                    "models.Ellipse2D(2, 0, 0, 3, 1, theta=0.3)",
                    "[x.parameters, x(np.arange(4), np.arange(4))]",
                    "alias.a = 5",
                ),
                (
                    "functional_models.Linear1D",
                    "models.Linear1D(2, 1, fixed={'slope': True})",
                    "[x.parameters, x.fixed, x(np.arange(4))]",
                    "alias.slope = 5",
                ),
                (
                    "polynomial.Polynomial1D",
                    "models.Polynomial1D(2, c0=1, c2=3)",
                    "[x.parameters, x.degree, x(np.arange(4))]",
                    "alias.c1 = 5",
                ),
                (
                    "polynomial.Polynomial2D",
                    "models.Polynomial2D(2, c0_0=1, c1_1=3)",
                    "[x.parameters, x.degree, x(np.arange(4), np.arange(4))]",
                    "alias.c1_0 = 5",
                ),
            )
        ),
        Case(
            "astropy.nddata.NDData",
            "from astropy.nddata import NDData, StdDevUncertainty\n"
            + _IMAGE
            + "x = NDData(image, StdDevUncertainty(image / 9), image > 5, unit='m', meta={'a': 1})",
            "[x.data, x.mask, x.uncertainty.array, str(x.unit), x.meta, "
            "x.uncertainty.parent_nddata is x]",
            "alias.data[0, 0] = 7",
        ),
        Case(
            "astropy.nddata.NDDataRef",
            "from astropy.nddata import NDDataRef\n" + _IMAGE + "x = NDDataRef(image, unit='s')",
            "[x.data, x.add(x).data, str(x.unit)]",
            "alias.data[0, 0] = 7",
        ),
        Case(
            "astropy.stats.SigmaClip",
            "from astropy.stats import SigmaClip\nx = SigmaClip(sigma=2, maxiters=3)\n" + _IMAGE,
            "[x.sigma, x.maxiters, x(image, masked=False)]",
            "alias.maxiters = 1",
        ),
        Case(
            "astropy.table.QTable",
            "from astropy.table import QTable\nimport astropy.units as u\n"
            "x = QTable({'t': [1.0, 2.0] * u.s, 'name': ['a', 'b']}, meta={'by': 'me'})",
            "[x['t'].to_value('s'), str(x['t'].unit), list(map(str, x['name'])), dict(x.meta)]",
            "alias['t'][0] = 9 * u.min",
        ),
        Case(
            "astropy.units.Quantity",
            "import astropy.units as u\nx = np.arange(4.0) * (u.km / u.h)",
            "[x.value, str(x.unit), x.to_value('m/s')]",
            "alias[1] = 7 * u.m / u.s",
        ),
        Case(
            "astropy.visualization.PercentileInterval",
            "from astropy.visualization import PercentileInterval\nx = PercentileInterval(90)\n"
            + _IMAGE,
            "[x(image), x.get_limits(image)]",
            "alias.upper_percentile = 60.0",
        ),
        Case(
            "astropy.visualization.mpl_normalize.ImageNormalize",
            "from astropy.visualization import ImageNormalize, MinMaxInterval, SqrtStretch\n"
            + _IMAGE
            + "x = ImageNormalize(image, interval=MinMaxInterval(), stretch=SqrtStretch())",
            "[x.vmin, x.vmax, np.asarray(x(image)), x.clip]",
            "alias.vmax = 10",
        ),
        Case(
            "astropy.wcs.Celprm",
            "from astropy.wcs import Celprm\nx = Celprm()\nx.ref = [10.0, 20.0, 180.0, 90.0]",
            "[x.ref, x.theta0, x.offset]",
            "alias.phi0 = 5.0\nalias.ref = [11.0, 20.0, 180.0, 90.0]",
        ),
        Case(
            "astropy.wcs.WCS",
            "from astropy.wcs import WCS\nx = WCS(naxis=2)\nx.wcs.crpix = [5, 6]\n"
            "x.wcs.cdelt = [-0.1, 0.1]\nx.wcs.crval = [30, -40]\n"
            "x.wcs.ctype = ['RA---AIR', 'DEC--AIR']\nx.wcs.set_pv([(2, 1, 45.0)])",
            "[x.to_header_string(), *x.wcs_pix2world([1, 2.0], [3, 4.0], 1)]",
            "alias.wcs.crval = [31, -40]",
        ),
    ],
    setup="import numpy as np",
)

BOKEH = Library(
    "bokeh",
    [
        Case(
            "bokeh.plotting._figure.figure",
            "from bokeh.plotting import figure\nfrom bokeh.embed import json_item\n"
            "x = figure(title='a', width=300)\nline = x.line([1, 2, 3], [4, 6, 5], color='red')",
            "[x.title.text, x.width, dict(line.data_source.data), x.renderers[0] is line, "
            "json_item(x)['doc']['roots'][0]['attributes']['width'], [type(t).__name__ for t in x.tools]]",
            "alias.title.text = 'b'\nalias.scatter([1], [2])",
        )
    ],
    setup="",
)

CATBOOST = Library(
    "catboost",
    [
        Case(
            "catboost",
            "from catboost import CatBoostClassifier, CatBoostRegressor, Pool\n"
            "quiet = dict(iterations=8, verbose=False, allow_writing_files=False, random_seed=1)\n"
            "x = CatBoostClassifier(**quiet).fit(X, t)\n"
            "more = CatBoostRegressor(**quiet).fit(X, X[:, 0])",
            "[x.predict_proba(X), more.predict(X), x.get_params()]",
            "alias.fit(X, 1 - t)",
        ),
        Case(
            "catboost: Pool",
            "from catboost import Pool\nx = Pool(X, t, weight=np.ones(60))",
            "[x.get_features(), list(x.get_label()), list(x.get_weight())]",
            "alias.set_weight(np.arange(60.0))",
            live="a Pool is C++ memory without a way to copy it out",
            listed=False,
        ),
    ],
    setup="import numpy as np\nX = np.random.default_rng(0).normal(size=(60, 4))\n"
    "t = (X[:, 0] + X[:, 1] > 0).astype(int)",
    requires=("numpy", "catboost"),
)

DASK = Library(
    "dask",
    [
        Case(
            "dask",
            "import dask, dask.array, dask.dataframe\nimport pandas as pd\n"
            "whole = dask.array.arange(20, chunks=5) ** 2\n"
            "frame = dask.dataframe.from_pandas(pd.DataFrame({'a': range(6)}), npartitions=2)\n"
            "twice = dask.delayed(lambda v: [v, v])(3)\n"
            "x = {'sum': whole.sum(), 'array': whole, 'frame': frame.a + 1, 'delayed': twice}",
            "[each.compute(scheduler='sync') for each in x.values()]",
            "alias['array'] = alias['array'][::2]",
        )
    ],
    requires=("dask[array,dataframe]",),
)

DATAPREP = Library(
    "dataprep",
    [
        Case(
            "dataprep.datasets",
            "from dataprep.datasets import load_dataset\nx = load_dataset('titanic')",
            "x.head(20)",
            "alias.iloc[0, 0] = -1",
        ),
        Case(
            "dataprep.eda.intermediate.Intermediate",
            "from dataprep.datasets import load_dataset\nfrom dataprep.eda import compute\n"
            "x = compute(load_dataset('titanic').head(50), 'Age')",
            "[sorted(map(str, x)), x.visual_type]",
            "alias.visual_type = 'other'",
        ),
    ],
    group="dataprep",
)

DILL = Library(
    "dill",
    [
        Case(
            "dill",
            "import dill\nx = {'f': dill.loads, 'bytes': [dill.dumps(lambda v: v + 1)]}",
            "[x['f'](each)(4) for each in x['bytes']]",
            "alias['bytes'].append(dill.dumps(lambda v: v * 2))",
        )
    ],
)

GENSIM = Library(
    "gensim",
    [
        Case(
            "gensim",
            "from gensim.corpora import Dictionary\nfrom gensim.models import TfidfModel, Word2Vec\n"
            "texts = [['cat', 'dog', 'cat'], ['dog', 'bird'], ['fish', 'cat']] * 5\n"
            "x = Word2Vec(texts, vector_size=8, min_count=1, seed=1, workers=1)\n"
            "words = Dictionary(texts)\nmodel = TfidfModel(dictionary=words)",
            "[x.wv.vectors, x.wv.index_to_key, dict(words.token2id), model[words.doc2bow(texts[0])]]",
            "alias.train(texts, total_examples=15, epochs=1)",
        )
    ],
)

GYM = Library(
    "gym",
    [
        Case(
            "gym",
            "import gym\nx = gym.make('CartPole-v1')\nx.reset(seed=3)\nx.action_space.seed(1)",
            "[list(map(float, x.unwrapped.state)), str(x.spec.id), str(x.observation_space), "
            "x._elapsed_steps]",
            "alias.step(1)",
        )
    ],
    group="gym",
)

IPYWIDGETS = Library(
    "ipywidgets",
    [
        Case(
            "ipywidgets",
            "import ipykernel.ipkernel\nimport ipywidgets\n"
            "x = ipywidgets.VBox([ipywidgets.IntSlider(3, description='n'), ipywidgets.Text('a')])",
            "[[type(each).__name__, each.value, each.description] for each in x.children]",
            "alias.children[0].value = 7",
        )
    ],
    requires=("ipywidgets", "ipykernel"),
)

KERAS = Library(
    "keras",
    [
        Case(
            "keras.src.initializers.initializers.RandomNormal",
            "x = keras.initializers.RandomNormal(stddev=0.5, seed=3)",
            "[x.get_config(), np.asarray(x((2, 3)))]",
            "alias.stddev = 2.0",
            note="keras.src.initializers.random_initializers today",
        ),
        Case(
            "keras.src.initializers.initializers.RandomUniform",
            "x = keras.initializers.RandomUniform(-1.0, 1.0, seed=3)",
            "[x.get_config(), np.asarray(x((2, 3)))]",
            "alias.maxval = 2.0",
            note="keras.src.initializers.random_initializers today",
        ),
        Case(
            "keras.src.layers.core.dense.Dense",
            "x = keras.layers.Dense(3, activation='relu')\nx.build((None, 4))",
            "[x.get_config()['units'], *x.get_weights(), np.asarray(x(np.ones((1, 4), 'f4')))]",
            "alias.set_weights([np.ones((4, 3)), np.ones(3)])",
        ),
        Case(
            "keras.src.optimizers.schedules.learning_rate_schedule.ExponentialDecay",
            "x = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)",
            "[x.get_config(), float(x(25))]",
            "alias.decay_rate = 0.5",
        ),
    ],
    setup="import keras\nimport numpy as np",
    group="tensorflow",
)

LIGHTGBM = Library(
    "lightgbm",
    [
        Case(
            "lightgbm.basic.Dataset",
            "x = lgb.Dataset(X, t, free_raw_data=False, params={'verbose': -1})\n"
            "model = lgb.train({'verbose': -1, 'num_threads': 1}, x, 5)",
            "[x.num_data(), x.num_feature(), x.get_label(), x.get_weight(), model.predict(X)]",
            "alias.set_weight(np.arange(60.0))",
        ),
        Case(
            "lightgbm.basic.Dataset: its raw data freed",
            "x = lgb.Dataset(X, t, params={'verbose': -1})\n"
            "model = lgb.train({'verbose': -1, 'num_threads': 1}, x, 5)",
            "[x.num_data(), x.num_feature(), x.get_label(), "
            "lgb.train({'verbose': -1, 'num_threads': 1}, x, 3).predict(X)]",
            "alias.set_label(1 - t)",
            listed=False,
        ),
    ],
    setup="import lightgbm as lgb\nimport numpy as np\n"
    "X = np.random.default_rng(0).normal(size=(60, 4))\nt = (X[:, 0] > 0).astype(int)",
)

LLM = Library(
    "llm",
    [
        Case(
            "llm.default_plugins.openai_models.Chat",
            "from llm.default_plugins.openai_models import Chat\n"
            "x = Chat('some-model', api_base='http://localhost:1', vision=True)",
            "[x.model_id, x.api_base, sorted(x.attachment_types), str(x)]",
            "alias.api_base = 'http://localhost:2'",
        )
    ],
)

LMFIT = Library(
    "lmfit",
    [
        Case(
            "lmfit.parameter.Parameters",
            "import lmfit\nx = lmfit.Parameters()\nx.add('a', 2.0, min=0)\nx.add('b', expr='2 * a')",
            "[[each.name, each.value, each.min, each.expr] for each in x.values()]",
            "alias['a'].value = 5.0",
        )
    ],
)

_DRAWN = "list(fig.canvas.get_width_height()), drawn(fig)"
MATPLOTLIB = Library(
    "matplotlib",
    [
        Case(
            "mpl_toolkits.mplot3d.art3d.Line3DCollection",
            "from mpl_toolkits.mplot3d.art3d import Line3DCollection\n"
            "fig = plt.figure()\nax = fig.add_subplot(projection='3d')\n"
            "x = Line3DCollection([[(0, 0, 0), (1, 1, 1)], [(0, 1, 0), (1, 0, 1)]], colors=['r', 'b'])\n"
            "ax.add_collection3d(x)",
            "[x.get_colors(), x.axes is ax, drawn(fig)]",
            "alias.set_color('green')",
        ),
        Case(
            "matplotlib.Axes",
            "fig, x = plt.subplots()\nx.plot([1, 3, 2], label='a')\nx.legend()\n"
            "x.set_xlabel('time')",
            "[x.get_xlabel(), x.lines[0].get_ydata(), x.figure is fig, drawn(fig)]",
            "alias.plot([3, 1, 2])",
        ),
        Case(
            "matplotlib.colors.BoundaryNorm",
            "x = matplotlib.colors.BoundaryNorm([0, 1, 5, 9], 256)",
            "[x.boundaries, x.Ncmap, np.asarray(x([0.5, 3, 8]))]",
            "alias.boundaries[1] = 4",
        ),
        Case(
            "matplotlib.colors.ListedColormap",
            "x = matplotlib.colors.ListedColormap(['red', 'lime', 'blue'], name='mine')",
            "[x.name, x.N, x(np.arange(3)), x.get_over()]",
            "alias._lut[1] = 0.5\nalias._rgba_over = (0.1, 0.2, 0.3, 1.0)",
        ),
        Case(
            "matplotlib.dates.AutoDateFormatter",
            "x = matplotlib.dates.AutoDateFormatter(matplotlib.dates.AutoDateLocator(), "
            "defaultfmt='%Y')",
            "[x.scaled[30.0], x.defaultfmt, x(20000.5)]",
            "alias.scaled[30.0] = 'M%m'",
        ),
        Case(
            "matplotlib.dates.WeekdayLocator",
            "import datetime as dt\n"
            "x = matplotlib.dates.WeekdayLocator(byweekday=matplotlib.dates.TU, interval=2)",
            "[float(each) for each in x.tick_values(dt.datetime(2024, 1, 1), "
            "dt.datetime(2024, 3, 1))]",
            "alias.rule.set(interval=1)",
        ),
        Case(
            "matplotlib.image.AxesImage",
            "fig, ax = plt.subplots()\nx = ax.imshow(np.arange(12.0).reshape(3, 4), cmap='magma')",
            "[np.asarray(x.get_array()), x.cmap.name, x.norm.vmax, x.axes is ax, drawn(fig)]",
            "alias.set_clim(2, 5)",
        ),
        Case(
            "matplotlib.image.FigureImage",
            "fig = plt.figure()\nx = fig.figimage(np.arange(400.0).reshape(20, 20), 5, 9)",
            "[np.asarray(x.get_array()), x.ox, x.figure is fig, drawn(fig)]",
            "alias.set_cmap('gray')",
        ),
        Case(
            "matplotlib.lines.Line2D",
            "fig, ax = plt.subplots()\n(x,) = ax.plot([1, 3, 2], 'r--', lw=3)",
            "[x.get_xydata(), x.get_color(), x.get_linestyle(), ax.lines[0] is x, drawn(fig)]",
            "alias.set_ydata([2, 2, 3])",
        ),
        Case(
            "matplotlib.offsetbox.AnchoredOffsetbox",
            "from matplotlib.offsetbox import AnchoredOffsetbox, TextArea\nfig, ax = plt.subplots()\n"
            "x = AnchoredOffsetbox('upper left', child=TextArea('here'), frameon=True)\n"
            "ax.add_artist(x)",
            "[x.loc, x.get_child().get_text(), drawn(fig)]",
            "alias.get_child().set_text('there')",
        ),
        Case(
            "matplotlib.patches.Arrow",
            "fig, ax = plt.subplots()\nx = matplotlib.patches.Arrow(0.1, 0.1, 0.5, 0.5, color='g')\n"
            "ax.add_patch(x)",
            "[x.get_facecolor(), x.get_path().vertices, ax.patches[0] is x, drawn(fig)]",
            "alias.set_facecolor('red')",
        ),
        Case(
            "matplotlib.patches.Ellipse",
            "fig, ax = plt.subplots()\nx = matplotlib.patches.Ellipse((0.5, 0.5), 0.4, 0.2, angle=30)\n"
            "ax.add_patch(x)",
            "[x.width, x.angle, x.center, ax.patches[0] is x, drawn(fig)]",
            "alias.width = 0.8",
        ),
        Case(
            "matplotlib.ticker.AutoLocator",
            "fig, ax = plt.subplots()\nx = ax.xaxis.get_major_locator()",
            "[x.tick_values(0, 37), x.axis is ax.xaxis, drawn(fig)]",
            "alias.set_params(nbins=3)",
        ),
    ],
    setup="import matplotlib\nimport matplotlib.pyplot as plt\nimport numpy as np\n"
    "def drawn(fig):\n    fig.canvas.draw()\n    return np.asarray(fig.canvas.buffer_rgba())",
)

NETWORKX = Library(
    "networkx",
    [
        Case(
            f"networkx.classes.{module}",
            f"import networkx as nx\nx = nx.{kind}([(1, 2), (2, 3)], name='g')\n"
            "x.add_edge('a', 1, weight=0.5)",
            "[x.graph, list(x.nodes(data=True)), list(x.edges(data=True)), "
            "nx.shortest_path(x, 'a', 3)]",
            "alias.edges['a', 1]['weight'] = 2",
        )
        for module, kind in (("digraph.DiGraph", "DiGraph"), ("graph.Graph", "Graph"))
    ],
)

NLTK = Library(
    "nltk",
    [
        Case(
            "nltk.stem.porter.PorterStemmer",
            "from nltk.stem.porter import PorterStemmer\nx = PorterStemmer()",
            "[x.mode, *map(x.stem, ['running', 'flies', 'skies', 'relational'])]",
            "alias.pool['running'] = 'ran'",
        )
    ],
)

OPENCV = Library(
    "opencv-python",
    [
        Case(
            "cv2",
            "import cv2\nimport numpy as np\nimage = np.zeros((20, 20), 'u1')\n"
            "x = {'blurred': cv2.GaussianBlur(cv2.circle(image, (9, 9), 5, 255), (3, 3), 0), "
            "'f': cv2.resize, 'found': cv2.findContours(image, cv2.RETR_LIST, 2)[0]}",
            "[x['blurred'], x['f'](x['blurred'], (5, 5)), x['found']]",
            "cv2.line(alias['blurred'], (0, 0), (5, 5), 99)",
            note="arrays and functions",
        ),
        Case(
            "cv2: KeyPoint",
            "import cv2\nx = cv2.KeyPoint(1.5, 2.5, 3, 4)",
            "[x.pt, x.size, x.angle]",
            "alias.angle = 90",
            listed=False,
        ),
        Case(
            "cv2: a detector",
            "import cv2\nx = cv2.ORB_create(nfeatures=7)",
            "[x.getMaxFeatures()]",
            "alias.setMaxFeatures(9)",
            live="it is a C++ object without a way to copy it out",
            listed=False,
        ),
    ],
    requires=("opencv-python-headless",),
    package="opencv-python-headless",
)

OPTUNA = Library(
    "optuna",
    [
        Case(
            "optuna.Study",
            "import optuna\noptuna.logging.disable_default_handler()\n"
            "def cost(trial): return trial.suggest_float('a', -1, 1) ** 2\n"
            "x = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))\n"
            "x.optimize(cost, n_trials=5)",
            "[x.best_value, x.best_params, [each.value for each in x.trials]]",
            "alias.optimize(cost, n_trials=8)",
        )
    ],
)

PANDAS = Library(
    "pandas",
    [
        Case(
            "pandas.DataFrame",
            "x = pd.DataFrame({'a': [1, 2, 3], 'b': ['u', None, 'w'], "
            "'t': pd.date_range('2024', periods=3), 'c': pd.Categorical(['p', 'q', 'p'])})",
            "[x, x.groupby('c', observed=True).a.sum()]",
            "alias.loc[1, 'a'] = 9",
        ),
        Case(
            "pandas.Series",
            "x = pd.Series([1.5, None, 3], index=list('abc'), name='s')",
            "[x, x.name]",
            "alias['b'] = 9",
        ),
    ],
    setup="import pandas as pd",
)

PHOTUTILS = Library(
    "photutils",
    [
        Case(
            "photutils.psf.matching.CosineBellWindow",
            "from photutils.psf_matching import CosineBellWindow\nx = CosineBellWindow(alpha=0.35)",
            "[x.alpha, x((9, 9))]",
            "alias.alpha = 0.6",
            note="photutils.psf_matching today",
        ),
        Case(
            "photutils.psf.matching.HanningWindow",
            "from photutils.psf_matching import HanningWindow\nx = [HanningWindow()]",
            "[each((9, 9)) for each in x]",
            "alias.append(HanningWindow())",
            note="photutils.psf_matching today; has no state of its own",
        ),
        Case(
            "photutils.utils.CutoutImage",
            "from photutils.utils import CutoutImage\n"
            "x = CutoutImage(np.arange(100.0).reshape(10, 10), (4, 4), (3, 3))",
            "[x.data, x.shape, str(x.bbox_original), x.position]",
            "alias.data[0, 0] = -1",
        ),
        Case(
            "photutils.utils.ImageDepth",
            "from photutils.utils import ImageDepth\n"
            "x = ImageDepth(3, nsigma=5, napers=8, niters=2, seed=1, progress_bar=False)\n"
            "image = np.random.default_rng(0).normal(size=(80, 80))\n"
            "depth = x(image, np.zeros((80, 80), bool))",
            "[x.nsigma, *depth, x.fluxes[0]]",
            "alias.nsigma = 3",
        ),
    ],
    setup="import numpy as np",
)

PLOTLY = Library(
    "plotly",
    [
        Case(
            "plotly.express",
            "import plotly.express as px\nimport pandas as pd\n"
            "x = px.scatter(pd.DataFrame({'a': [1, 2, 3], 'b': [3, 1, 2]}), x='a', y='b', title='t')",
            "x.to_json()",
            "alias.update_layout(title='u')",
        ),
        Case(
            "plotly.figure_factory",
            "import plotly.figure_factory as ff\nx = ff.create_table([['a', 'b'], [1, 2]])",
            "x.to_json()",
            "alias.layout.annotations[0].text = 'c'",
        ),
        Case(
            "plotly.graph_objects",
            "import plotly.graph_objects as go\nx = go.Figure(go.Bar(x=['a', 'b'], y=[1, 2]))",
            "[x.to_json(), x.data[0].type]",
            "alias.add_trace(go.Scatter(y=[1, 2]))",
        ),
        Case(
            "plotly.graph_objs",
            "from plotly import graph_objs\nx = graph_objs.Scatter(x=[1, 2], y=[3, 4], name='s')",
            "x.to_plotly_json()",
            "alias.marker.color = 'red'",
        ),
        Case(
            "plotly.io",
            "import plotly.io\nimport plotly.graph_objects as go\n"
            "x = {'f': plotly.io.to_json, 'template': plotly.io.templates['plotly_dark'], "
            '\'figures\': [plotly.io.from_json(\'{"data": [{"type": "bar", "y": [1]}]}\')]}',
            "[x['f'](each) for each in x['figures']] + [x['template'].layout.paper_bgcolor]",
            "alias['figures'][0].data[0].y = [2, 3]",
        ),
        Case(
            "plotly.offline",
            "import plotly.offline\n"
            "x = {'f': plotly.offline.plot, "
            "'divs': [plotly.offline.plot([{'y': [1, 2]}], output_type='div', include_plotlyjs=False)]}",
            "[x['divs'], x['f'].__name__]",
            "alias['divs'].append('<div/>')",
        ),
        Case(
            "plotly.subplots",
            "from plotly.subplots import make_subplots\nx = make_subplots(1, 2, shared_yaxes=True)\n"
            "x.add_bar(y=[1, 2], row=1, col=2)",
            "[x.to_json(), str(x._grid_ref)]",
            "alias.add_bar(y=[3], row=1, col=1)",
        ),
    ],
    requires=("plotly", "pandas"),
)

POLARS = Library(
    "polars",
    [
        Case(
            "polars.DataFrame",
            "import polars as pl\nx = pl.DataFrame({'a': [1, 2, None], 'b': ['u', 'v', 'w']})",
            "[x.to_dict(as_series=False), str(x.schema)]",
            "alias[0, 'a'] = 9",
        ),
        Case(
            "polars.LazyFrame",
            "import polars as pl\n"
            "x = [pl.LazyFrame({'a': [1, 2, 3]}).filter(pl.col('a') > 1).with_columns(b=pl.col('a') * 2)]",
            "[each.collect().to_dict(as_series=False) for each in x]",
            "alias.append(alias[0].select('b'))",
        ),
    ],
)

PROPHET = Library(
    "prophet",
    [
        Case(
            "prophet.Prophet",
            "import logging\nlogging.getLogger('cmdstanpy').disabled = True\n"
            "import pandas as pd\nfrom prophet import Prophet\n"
            "seen = pd.DataFrame({'ds': pd.date_range('2024', periods=60), 'y': [float(i % 7) for i in range(60)]})\n"
            "x = Prophet(weekly_seasonality=True, uncertainty_samples=0).fit(seen, seed=1)",
            "[x.predict(x.make_future_dataframe(5)).yhat, x.params['k']]",
            "alias.params['k'] = alias.params['k'] + 1",
        )
    ],
)

PYSPARK = Library(
    "pyspark",
    [
        Case(
            "pyspark.sql",
            "from pyspark.sql import SparkSession\n"
            "spark = SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false')"
            ".getOrCreate()\nx = spark.createDataFrame([(1, 'a'), (2, 'b')], ['n', 's'])",
            "[list(map(list, x.collect())), x.columns]",
            "alias.n",
            live="a DataFrame is a handle of an object in Spark's Java process",
        ),
        Case(
            "pyspark.sql: Row, StructType",
            "from pyspark.sql import Row, types\n"
            "x = types.StructType([types.StructField('n', types.LongType())])\nmore = Row(n=1, s='a')",
            "[x.json(), more.asDict()]",
            "alias.add('s', types.StringType())",
            listed=False,
        ),
    ],
    group="pyspark",
)

QISKIT = Library(
    "qiskit",
    [
        Case(
            "qiskit.QuantumCircuit",
            "from qiskit import QuantumCircuit, qasm2\nfrom qiskit.quantum_info import Statevector\n"
            "x = QuantumCircuit(2)\nx.h(0)\nx.cx(0, 1)\nx.rz(0.3, 1)",
            "[qasm2.dumps(x), dict(x.count_ops()), Statevector(x).data]",
            "alias.x(0)",
        )
    ],
)

SKIMAGE = Library(
    "scikit-image",
    [
        Case(
            "skimage",
            "from skimage import filters, transform\nx = transform.AffineTransform(rotation=0.3)\n"
            "more = {'edges': filters.sobel(image), 'f': filters.sobel}",
            "[x.params, x([[1, 2]]), more['edges'], more['f'](image)]",
            "alias.params[0, 2] = 4",
        ),
        Case(
            "skimage.morphology",
            "from skimage import measure, morphology\n"
            "x = {'disk': morphology.disk(2), 'f': morphology.dilation}",
            "[x['disk'], x['f'](image, x['disk'])]",
            "alias['disk'][0, 0] = 1",
        ),
    ],
    setup="import numpy as np\nimage = np.add.outer(np.arange(9.0), np.arange(9.0) ** 2) % 7",
)


def _sklearn(
    module: str, imports: str, made: str, value: str = "x.predict(X)", change: str = "", **more: str
) -> Case:
    return Case(
        f"sklearn.{module}",
        f"from sklearn.{module} import {imports}\nx = {made}",
        f"[{value}, {more['beside']}]" if "beside" in more else value,
        change or "alias.fit(X2, t2)",
    )


SKLEARN = Library(
    "scikit-learn",
    [
        _sklearn(
            "cluster",
            "DBSCAN, AgglomerativeClustering, KMeans",
            "KMeans(3, n_init=2, random_state=1).fit(X)\n"
            "more = [DBSCAN().fit(X), AgglomerativeClustering(3).fit(X)]",
            beside="[each.labels_ for each in more]",
        ),
        _sklearn(
            "compose",
            "ColumnTransformer, TransformedTargetRegressor",
            "ColumnTransformer([('a', StandardScaler(), [0, 1]), "
            "('b', FunctionTransformer(lambda v: v * 2), [2])]).fit(X)\n"
            "more = TransformedTargetRegressor(LinearRegression(), func=np.exp, inverse_func=np.log)"
            ".fit(X, X[:, 0])",
            "x.transform(X)",
            beside="more.predict(X)",
        ),
        _sklearn(
            "datasets",
            "load_iris, make_blobs",
            "load_iris()\nmore = make_blobs(20, random_state=1)",
            "[x.data, x.target, list(map(str, x.target_names)), x.DESCR]",
            "alias.data[0, 0] = 99",
            beside="more",
        ),
        _sklearn(
            "decomposition",
            "NMF, PCA, LatentDirichletAllocation",
            "PCA(2).fit(X)\nmore = [NMF(2, max_iter=300, random_state=1).fit(abs(X)), "
            "LatentDirichletAllocation(2, random_state=1).fit(abs(X))]",
            "x.transform(X)",
            beside="[each.transform(abs(X)) for each in more]",
        ),
        _sklearn(
            "discriminant_analysis",
            "LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis",
            "LinearDiscriminantAnalysis().fit(X, t)\nmore = QuadraticDiscriminantAnalysis().fit(X, t)",
            "x.predict_proba(X)",
            beside="more.predict_proba(X)",
        ),
        _sklearn(
            "dummy",
            "DummyClassifier, DummyRegressor",
            "DummyClassifier(strategy='prior').fit(X, t)\nmore = DummyRegressor().fit(X, X[:, 0])",
            "x.predict_proba(X)",
            "alias.fit(X, np.arange(60) % 3)",
            beside="more.predict(X)",
        ),
        _sklearn(
            "ensemble",
            "GradientBoostingClassifier, HistGradientBoostingRegressor, IsolationForest, "
            "RandomForestClassifier",
            "RandomForestClassifier(8, random_state=1).fit(X, t)\n"
            "more = [GradientBoostingClassifier(n_estimators=5, random_state=1).fit(X, t), "
            "HistGradientBoostingRegressor(max_iter=5).fit(X, X[:, 0]), "
            "IsolationForest(5, random_state=1).fit(X)]",
            "x.predict_proba(X)",
            beside="[each.predict(X) for each in more]",
        ),
        _sklearn(
            "feature_extraction.text",
            "CountVectorizer, HashingVectorizer, TfidfVectorizer",
            "TfidfVectorizer(tokenizer=lambda text: text.split()).fit(['a b', 'b c c', 'a d'])\n"
            "more = [CountVectorizer().fit(['one two', 'two']), HashingVectorizer(n_features=8)]",
            "[x.vocabulary_, x.transform(['a c']).toarray()]",
            "alias.fit(['d a', 'e'])",
            beside="[each.transform(['two one']).toarray() for each in more]",
        ),
        _sklearn(
            "feature_selection",
            "RFE, SelectKBest, VarianceThreshold, f_classif",
            "SelectKBest(f_classif, k=2).fit(X, t)\n"
            "more = [RFE(LinearRegression(), n_features_to_select=2).fit(X, X[:, 0]), "
            "VarianceThreshold(0.5).fit(X)]",
            "[x.scores_, x.transform(X)]",
            beside="[each.get_support() for each in more]",
        ),
        _sklearn(
            "impute",
            "KNNImputer, SimpleImputer",
            "SimpleImputer(strategy='median').fit(X)\nmore = KNNImputer().fit(X)",
            "x.transform(np.full((1, 4), np.nan))",
            beside="more.transform(np.where(X > 1, np.nan, X))",
        ),
        _sklearn("kernel_ridge", "KernelRidge", "KernelRidge(kernel='rbf').fit(X, X[:, 0])"),
        _sklearn(
            "linear_model",
            "Lasso, LogisticRegression, SGDClassifier",
            "LogisticRegression().fit(X, t)\n"
            "more = [Lasso(0.1).fit(X, X[:, 0]), SGDClassifier(random_state=1).fit(X, t)]",
            "[x.coef_, x.predict_proba(X)]",
            beside="[each.predict(X) for each in more]",
        ),
        _sklearn(
            "manifold",
            "MDS, TSNE, Isomap",
            "Isomap(n_components=2).fit(X)\n"
            "more = TSNE(perplexity=5, max_iter=250, random_state=1, init='random').fit(X)",
            "x.transform(X)",
            beside="more.embedding_",
        ),
        _sklearn(
            "metrics",
            "ConfusionMatrixDisplay, RocCurveDisplay, f1_score, make_scorer",
            "RocCurveDisplay.from_predictions(t, X[:, 0])\n"
            "more = {'score': make_scorer(f1_score, average='macro'), "
            "'matrix': ConfusionMatrixDisplay.from_predictions(t, t2)}\n"
            "model = LogisticRegression().fit(X, t)",
            "[x.fpr, x.tpr, x.line_.get_color()]",
            "alias.line_.set_color('red')",
            beside="more['score'](model, X, t), more['matrix'].confusion_matrix",
        ),
        _sklearn(
            "metrics.pairwise",
            "cosine_similarity, pairwise_distances, rbf_kernel",
            "{'near': cosine_similarity(X), 'f': rbf_kernel, 'far': pairwise_distances(X)}",
            "[x['near'], x['f'](X), x['far']]",
            "alias['near'][0, 0] = 5",
        ),
        _sklearn(
            "mixture",
            "BayesianGaussianMixture, GaussianMixture",
            "GaussianMixture(2, random_state=1).fit(X)\n"
            "more = BayesianGaussianMixture(n_components=2, random_state=1).fit(X)",
            "x.predict_proba(X)",
            beside="more.predict_proba(X)",
        ),
        _sklearn(
            "model_selection",
            "GridSearchCV, KFold, ShuffleSplit",
            "GridSearchCV(LogisticRegression(), {'C': [0.1, 1]}, cv=2).fit(X, t)\n"
            "more = [KFold(3, shuffle=True, random_state=1), ShuffleSplit(2, random_state=1)]",
            "[x.best_params_, x.cv_results_['mean_test_score'], x.predict_proba(X)]",
            beside="[list(each.split(X)) for each in more]",
        ),
        _sklearn(
            "multiclass",
            "OneVsOneClassifier, OneVsRestClassifier",
            "OneVsRestClassifier(LogisticRegression()).fit(X, np.arange(60) % 3)\n"
            "more = OneVsOneClassifier(LogisticRegression()).fit(X, np.arange(60) % 3)",
            "x.predict_proba(X)",
            beside="more.predict(X)",
        ),
        _sklearn(
            "naive_bayes",
            "GaussianNB, MultinomialNB",
            "GaussianNB().fit(X, t)\nmore = MultinomialNB().fit(abs(X), t)",
            "x.predict_proba(X)",
            "alias.partial_fit(X2, t2)",
            beside="more.predict_proba(abs(X))",
        ),
        _sklearn(
            "neighbors",
            "KDTree, KernelDensity, KNeighborsClassifier, NearestNeighbors",
            "KNeighborsClassifier(3, algorithm='kd_tree').fit(X, t)\n"
            "more = [NearestNeighbors(n_neighbors=3, algorithm='ball_tree').fit(X), "
            "KernelDensity().fit(X), KDTree(X)]",
            "x.predict_proba(X2)",
            beside="[more[0].kneighbors(X), more[1].score_samples(X), more[2].query(X, 2)]",
        ),
        _sklearn(
            "neural_network",
            "BernoulliRBM, MLPClassifier",
            "MLPClassifier((5,), max_iter=20, random_state=1).fit(X, t)\n"
            "more = BernoulliRBM(3, random_state=1, n_iter=2).fit(abs(X))",
            "x.predict_proba(X)",
            "alias.partial_fit(X2, t2)",
            beside="more.transform(abs(X))",
        ),
        _sklearn(
            "pipeline",
            "FeatureUnion, make_pipeline",
            "make_pipeline(StandardScaler(), FeatureUnion([('same', 'passthrough')]), "
            "LogisticRegression()).fit(X, t)",
            "[x.predict_proba(X), list(x.named_steps)]",
        ),
        _sklearn(
            "preprocessing",
            "KBinsDiscretizer, OneHotEncoder, OrdinalEncoder, PolynomialFeatures",
            "StandardScaler().fit(X)\n"
            "more = [PolynomialFeatures(2).fit(X), KBinsDiscretizer(3, encode='ordinal').fit(X)]\n"
            "names = OneHotEncoder().fit(np.array([['a'], ['b']], object))",
            "x.transform(X)",
            beside="[each.transform(X) for each in more], names.transform([['b']]).toarray()",
        ),
        _sklearn(
            "random_projection",
            "GaussianRandomProjection, SparseRandomProjection",
            "GaussianRandomProjection(2, random_state=1).fit(X)\n"
            "more = SparseRandomProjection(2, random_state=1).fit(X)",
            "x.transform(X)",
            "alias.random_state = 2\nalias.fit(X)",
            beside="more.transform(X)",
        ),
        _sklearn(
            "svm",
            "SVC, LinearSVC, OneClassSVM",
            "SVC(random_state=1).fit(X, t)\nmore = [LinearSVC().fit(X, t), OneClassSVM().fit(X)]",
            "x.decision_function(X)",
            beside="[each.decision_function(X) for each in more]",
        ),
        _sklearn(
            "tree",
            "DecisionTreeClassifier, ExtraTreeRegressor, export_text",
            "DecisionTreeClassifier(max_depth=3, random_state=1).fit(X, t)\n"
            "more = ExtraTreeRegressor(random_state=1).fit(X, X[:, 0])",
            "[export_text(x), x.predict_proba(X)]",
            beside="more.predict(X)",
        ),
        _sklearn(
            "utils",
            "Bunch, check_random_state, shuffle",
            "Bunch(a=1, mixed=shuffle(X, random_state=1), state=check_random_state(3))",
            "[x.a, x.mixed, x.state.get_state()[1], x.state.get_state()[2]]",
            "alias.state.normal()",
        ),
    ],
    setup="import numpy as np\nfrom sklearn.linear_model import LinearRegression, LogisticRegression\n"
    "from sklearn.preprocessing import FunctionTransformer, StandardScaler\n"
    "rng = np.random.default_rng(0)\nX = rng.normal(size=(60, 4))\nX2 = X[::-1] * 2 + 0.1\n"
    "t = (X[:, 0] + X[:, 1] > 0).astype(int)\nt2 = np.arange(60) % 2",
    requires=("scikit-learn", "matplotlib"),
)

SCIPY = Library(
    "scipy",
    [
        Case(
            "scipy.interpolate",
            "from scipy import interpolate\nx = interpolate.CubicSpline(points, points ** 2)\n"
            "more = [interpolate.interp1d(points, points, kind='cubic'), interpolate.make_interp_spline("
            "points, points), interpolate.RBFInterpolator(points[:, None], points)]",
            "[x(points + 0.1), more[0](1.5).tolist(), more[1](1.5).tolist(), more[2]([[1.5]])]",
            "alias.c[0, 0] += 1",
        ),
        Case(
            "scipy.ndimage",
            "from scipy import ndimage\nx = {'smooth': ndimage.gaussian_filter(grid, 1), "
            "'f': ndimage.label, 'slices': ndimage.find_objects((grid > 3).astype(int))}",
            "[x['smooth'], x['f'](grid > 3), str(x['slices'])]",
            "alias['smooth'][0, 0] = 7",
        ),
        Case(
            "scipy.ndimage.interpolate",
            "from scipy import ndimage\nx = {'zoomed': ndimage.zoom(grid, 2), 'f': ndimage.rotate}",
            "[x['zoomed'], x['f'](grid, 30)]",
            "alias['zoomed'][0, 0] = 7",
            note="the functions of scipy.ndimage.interpolation, in scipy.ndimage today",
        ),
        Case(
            "scipy.optimize",
            "from scipy import optimize\n"
            "x = optimize.minimize(lambda v: (v[0] - 1) ** 2 + v[1] ** 4, [0, 1], method='BFGS')\n"
            "more = [optimize.LinearConstraint([[1, 1]], 0, 1), optimize.Bounds([0], [1])]",
            "[x.x, float(x.fun), x.hess_inv, x.message, more[0].A, more[1].ub]",
            "alias.x[0] = 9",
        ),
        Case(
            "scipy.signal",
            "from scipy import signal\nx = signal.TransferFunction([1.0], [1.0, 2.0, 1.0])\n"
            "more = {'sos': signal.butter(3, 0.2, output='sos'), "
            "'stft': signal.ShortTimeFFT(np.hanning(4), 2, fs=1.0)}",
            "[x.num, x.den, x.step()[1], more['sos'], more['stft'].stft(np.arange(9.0))]",
            "alias.num = [2.0]",
        ),
        Case(
            "scipy.signal.windows",
            "from scipy.signal import windows\nx = {'made': windows.kaiser(9, 5), 'f': windows.hann}",
            "[x['made'], x['f'](7)]",
            "alias['made'][0] = 7",
        ),
        Case(
            "scipy.sparse",
            "from scipy import sparse\nx = sparse.csr_matrix(grid % 2)\n"
            "more = [sparse.coo_array(grid), sparse.lil_matrix(grid), sparse.dok_matrix(grid)]",
            "[x.toarray(), x.indptr, [each.toarray() for each in more]]",
            "alias.data[0] = 7",
        ),
        Case(
            "scipy.spatial",
            "from scipy import spatial\nx = spatial.transform.Rotation.from_euler('z', [10, 20], degrees=True)\n"
            "cloud = np.random.default_rng(0).normal(size=(9, 2))\n"
            "more = [spatial.cKDTree(cloud), spatial.KDTree(cloud)]\n"
            "hulls = [spatial.ConvexHull(cloud), spatial.Delaunay(cloud), spatial.Voronoi(cloud)]",
            "[x.as_quat(), [each.query(cloud, 2) for each in more], hulls[0].simplices, hulls[0].volume, "
            "hulls[1].simplices, hulls[2].vertices]",
            "alias[0] = alias[1]",
        ),
        Case(
            "scipy.spatial.distance",
            "from scipy.spatial import distance\n"
            "x = {'pairs': distance.pdist(grid), 'f': distance.cosine}",
            "[x['pairs'], float(x['f']([1, 2], [3, 4]))]",
            "alias['pairs'][0] = 7",
        ),
        Case(
            "scipy.spatial.distance._hausdorff",
            "from scipy.spatial.distance import directed_hausdorff\n"
            "x = {'made': [*directed_hausdorff(grid, grid[:4])], 'f': directed_hausdorff}",
            "[x['made'], [*x['f'](grid[:2], grid, rng=1)]]",
            "alias['made'][0] = 7.0",
            note="scipy.spatial._hausdorff, by the function that calls it",
        ),
        Case(
            "scipy.special",
            "from scipy import special\nx = {'made': special.gamma(points + 1), 'f': special.erf, "
            "'p': special.legendre(3)}",
            "[x['made'], x['f'](points), x['p'].coef, x['p'].weights]",
            "alias['made'][0] = 7",
        ),
        Case(
            "scipy.stats",
            "from scipy import stats\nx = stats.gaussian_kde(points)\n"
            "more = [stats.norm(1, 2), stats.multivariate_normal([0, 1], np.eye(2))]\n"
            "test = stats.ttest_ind(points, points + 1)\nline = stats.linregress(points, points ** 2)",
            "[x(points), more[0].cdf(points), more[1].pdf([1, 1]), float(test.pvalue), "
            "float(line.slope), float(line.intercept_stderr)]",
            "alias.set_bandwidth(0.3)",
        ),
    ],
    setup="import numpy as np\npoints = np.arange(9.0)\n"
    "grid = np.add.outer(np.arange(9.0), np.arange(9.0) ** 2) % 7",
)

SEABORN = Library(
    "seaborn",
    [
        Case(
            "seaborn",
            "import numpy as np\nimport pandas as pd\nimport seaborn as sns\n"
            "x = sns.FacetGrid(pd.DataFrame({'a': [1, 2, 3, 4], 'b': [4, 2, 3, 1], 'c': list('uvuv')}), "
            "col='c')\nx.map_dataframe(sns.scatterplot, x='a', y='b')\n"
            "def drawn(fig):\n    fig.canvas.draw()\n    return np.asarray(fig.canvas.buffer_rgba())",
            "[list(map(str, x.col_names)), x.data, drawn(x.figure)]",
            "alias.set_axis_labels('p', 'q')",
        )
    ],
)

STATSMODELS = Library(
    "statsmodels",
    [
        Case(
            "statsmodels.api",
            "import numpy as np\nimport statsmodels.api as sm\n"
            "X = sm.add_constant(np.random.default_rng(0).normal(size=(40, 2)))\n"
            "x = sm.OLS(X @ [1, 2, 3] + np.sin(np.arange(40)), X).fit()\n"
            "more = sm.GLM((X[:, 1] > 0).astype(int), X[:, :1], family=sm.families.Binomial()).fit()",
            "[x.params, x.bse, x.predict(X), x.rsquared, more.params, x.summary().tables[1].as_csv()]",
            "alias.params[0] = 5",
        )
    ],
)

TENSORFLOW = Library(
    "tensorflow",
    [
        Case(
            "tensorflow",
            "x = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name='v')\n"
            "more = [tf.constant([1, 2, 3]), tf.constant('text')]",
            "[x.numpy(), x.name, more[0].numpy(), more[1].numpy()]",
            "alias.assign_add(tf.ones((2, 2)))",
        ),
        Case(
            "tensorflow: a Dataset",
            "x = tf.data.Dataset.range(9).map(lambda v: v * 2).batch(4)",
            "[each.numpy() for each in x]",
            "alias = x = x.take(1)",
            live="a Dataset is a handle of a graph in TensorFlow's C++ runtime",
            listed=False,
        ),
        Case(
            "tensorflow.keras.models",
            "x = tf.keras.models.Sequential([tf.keras.layers.Input((4,)), "
            "tf.keras.layers.Dense(3, 'relu'), tf.keras.layers.Dense(1)])\n"
            "x.compile('adam', 'mse')\nx.fit(X, X[:, :1], epochs=1, verbose=0)",
            "[x.predict(X, verbose=0), *x.get_weights(), int(x.optimizer.iterations.numpy())]",
            "alias.fit(X, X[:, :1], epochs=1, verbose=0)",
        ),
        Case(
            "tensorflow.keras.optimizers",
            "x = tf.keras.optimizers.Adam(0.01)\nweight = tf.Variable([1.0, 2.0])\n"
            "x.apply_gradients([(tf.constant([0.1, 0.2]), weight)])",
            "[weight.numpy(), int(x.iterations.numpy()), float(x.learning_rate.numpy()), "
            "[each.numpy() for each in x.variables]]",
            "alias.apply_gradients([(tf.constant([0.1, 0.2]), weight)])",
        ),
    ],
    setup="import numpy as np\nimport tensorflow as tf\ntf.random.set_seed(1)\n"
    "X = np.random.default_rng(0).normal(size=(20, 4)).astype('f4')",
    requires=("tensorflow-cpu",),
    group="tensorflow",
    package="tensorflow-cpu",
)

TEXTBLOB = Library(
    "textblob",
    [
        Case(
            "textblob.TextBlob",
            "from textblob import TextBlob\nx = TextBlob('The cats are happy, very happy.')",
            "[x.raw, x.stripped, str(x.upper()), list(x.sentiment)]",
            "alias.stripped = 'other'",
        )
    ],
)

TORCH = Library(
    "torch",
    [
        Case(
            "torch",
            "x = torch.arange(12.0).reshape(3, 4)\nview = x[1]\n"
            "more = [torch.Generator().manual_seed(3), x.to_sparse(), torch.tensor([1], dtype=torch.bfloat16)]",
            "[x.numpy(), view.numpy(), view.data_ptr() == x.data_ptr() + 16, "
            "more[0].get_state().numpy(), more[1].to_dense().numpy(), float(more[2])]",
            "alias[1, 0] = -1",
        ),
        Case(
            "torch.nn",
            "torch.manual_seed(1)\n"
            "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))\n"
            "        self.register_buffer('seen', torch.zeros(1))\n"
            "    def forward(self, v):\n        return torch.relu(self.layers(v))\n"
            "x = Net().eval()\nweight = x.layers[0].weight",
            "[x(torch.ones(2, 4)).detach().numpy(), list(x.state_dict()), x.training, "
            "weight is x.layers[0].weight, type(x) is Net]",
            "with torch.no_grad(): alias.layers[0].weight += 1",
        ),
        Case(
            "torch.nn.functional",
            "import torch.nn.functional as F\nx = {'f': F.gelu, 'made': F.softmax(torch.arange(3.0), 0)}",
            "[x['f'](x['made']).numpy(), x['made'].numpy()]",
            "alias['made'][0] = 7",
        ),
        Case(
            "torch.optim",
            "model = torch.nn.Linear(3, 1)\nx = torch.optim.Adam(model.parameters(), lr=0.1)\n"
            "steps = torch.optim.lr_scheduler.StepLR(x, 1)\n"
            "def step():\n    x.zero_grad()\n    model(torch.ones(2, 3)).sum().backward()\n"
            "    x.step()\n    steps.step()\nstep()",
            "[x.state_dict()['param_groups'], "
            "[{k: v.numpy() for k, v in each.items()} for each in x.state.values()], "
            "model.weight.detach().numpy(), x.param_groups[0]['params'][0] is model.weight, "
            "steps.optimizer is x, steps.last_epoch]",
            "step()\nalias.param_groups[0]['weight_decay'] = 0.5",
        ),
        Case(
            "torch.utils.data",
            "from torch.utils.data import DataLoader, TensorDataset, random_split\n"
            "data = TensorDataset(torch.arange(8.0))\n"
            "x = DataLoader(data, 3, shuffle=True, generator=torch.Generator().manual_seed(1))\n"
            "parts = random_split(data, [6, 2], generator=torch.Generator().manual_seed(2))",
            "[x.generator.get_state().numpy(), x.dataset is data, x.batch_size, "
            "[each[0].numpy() for each in DataLoader(x.dataset, 3)], list(parts[0].indices)]",
            "alias.generator.manual_seed(9)",
        ),
    ],
    setup="import torch",
    requires=("torch==2.13.0", "numpy"),
    group="torch",
)

TRANSFORMERS = Library(
    "transformers",
    [
        Case(
            "huggingface",
            "from tokenizers import Tokenizer, models, pre_tokenizers, trainers\n"
            "from transformers import PreTrainedTokenizerFast\n"
            "bare = Tokenizer(models.BPE(unk_token='?'))\n"
            "bare.pre_tokenizer = pre_tokenizers.Whitespace()\n"
            "bare.train_from_iterator(['the cat the dog', 'a cat'], trainers.BpeTrainer("
            "vocab_size=40, special_tokens=['?']))\n"
            "x = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token='?')",
            "[x('the dog cat')['input_ids'], bare.encode('a dog').tokens, len(x)]",
            "alias.add_tokens(['dog cat'])",
            note="tokenizers",
        ),
        Case(
            "transformers",
            "import torch\nfrom transformers import BertConfig, BertModel\ntorch.manual_seed(1)\n"
            "x = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, "
            "intermediate_size=8, vocab_size=20)).eval()",
            "[x(torch.tensor([[1, 2]])).last_hidden_state.detach().numpy(), "
            "x.config.to_dict()['vocab_size']]",
            "with torch.no_grad(): alias.embeddings.word_embeddings.weight[1] += 1",
        ),
    ],
    requires=("torch==2.13.0", "numpy", "transformers"),
    group="torch",
)

WORDCLOUD = Library(
    "wordcloud",
    [
        Case(
            "wordcloud.WordCloud",
            "from wordcloud import WordCloud\nx = WordCloud(width=80, height=60, random_state=1)\n"
            "x.generate_from_frequencies({'a': 3, 'b': 1})",
            "[x.words_, x.to_array()]",
            "alias.generate_from_frequencies({'c': 1, 'b': 1})",
        )
    ],
)

LIBRARIES = [
    *(PYTHON, NUMPY, ARROW, ASTROPY, BOKEH, CATBOOST, DASK, DATAPREP, DILL, GENSIM, GYM),
    *(IPYWIDGETS, KERAS, LIGHTGBM, LLM, LMFIT, MATPLOTLIB, NETWORKX, NLTK, OPENCV, OPTUNA),
    *(PANDAS, PHOTUTILS, PLOTLY, POLARS, PROPHET, PYSPARK, QISKIT, SKIMAGE, SKLEARN, SCIPY),
    *(SEABORN, STATSMODELS, TENSORFLOW, TEXTBLOB, TORCH, TRANSFORMERS, WORDCLOUD),
]
