"""segship: semantic segmentation networks, from training to a file that deploys and proves itself.

Four floors, each importing only from those before it:

* ``segship.runtime``     runs exported models; needs numpy, OpenCV, Pillow and, if wanted, an engine
* ``segship.training``    networks, datasets, metrics, trainer; needs PyTorch (the datasets do not)
* ``segship.export``      PyTorch to ONNX, refused unless both compute the same
* ``segship.benchmarks``  measures what ships
"""

__version__ = "0.1.0"
