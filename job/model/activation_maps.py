"""Where in an image a model sees the class that it predicts: Grad-CAM.

R. R. Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, 2017, ICCV.
The map of a class is the sum of the last feature maps, each by its weight, and 0 where that is negative; the weight is
the mean over the map of the gradient of the logit. Between these maps and a logit there are here only their mean over
the image and one dense layer, so that this mean is, but for one factor, the weight in the dense layer: the map is the
class activation map (B. Zhou et al., 2016, CVPR), and no gradient is needed (Selvaraju et al., section 3.1).
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf


def activation_maps(model: keras.Model, images: Sequence[np.ndarray], classes: Sequence[int]) -> np.ndarray:
    """A map for each image and a class of it, float32 [n, h, w], its greatest value 1; 0 where no evidence is.

    `model` is as `Classifier.export` makes it, `images` are n of uint8 [s, s, 3], `classes` as many. With one logit the
    evidence for the first class is that against the second. The maps are as large as the last feature maps.
    """
    maps_of = tf.function(
        keras.Model(model.input, model.get_layer("pooling").input),
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)],
        autograph=False,
    )
    weights = model.get_layer("head").kernel.numpy()
    if weights.shape[1] == 1:
        weights = np.concatenate([-weights, weights], axis=1)
    # One after the other: all at once, in float32, could take more memory than an evaluation.
    maps = [maps_of(image[np.newaxis].astype(np.float32)).numpy()[0] for image in images]
    found = [np.maximum(of_image @ weights[:, index], 0) for of_image, index in zip(maps, classes, strict=True)]
    return np.array([one / (one.max() or 1) for one in found], np.float32)
