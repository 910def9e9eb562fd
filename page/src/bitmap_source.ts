/** A source of OpenLayers that shows pixels which are in memory. */
import { getHeight, getWidth, type Extent } from "ol/extent";
import ImageWrapper from "ol/Image";
import ImageState from "ol/ImageState";
import type Projection from "ol/proj/Projection";
import ImageSource from "ol/source/Image";

export class BitmapSource extends ImageSource {
  private readonly wrappers: ImageWrapper[];

  /** `levels` are the picture, its half, its quarter, and so on. */
  constructor(levels: ImageBitmap[], extent: Extent, projection: Projection, interpolate: boolean) {
    super({ projection, interpolate });
    this.wrappers = levels.map((level) => {
      const resolution = [getWidth(extent) / level.width, getHeight(extent) / level.height];
      const wrapper = new ImageWrapper(extent, resolution, 1, ImageState.LOADED);
      wrapper.setImage(level);
      return wrapper;
    });
  }

  /** Return the smallest level that has a pixel for each pixel of the screen. */
  override getImageInternal(_: Extent, resolution: number, pixelRatio: number): ImageWrapper {
    const level = Math.max(0, Math.floor(Math.log2(resolution / pixelRatio)));
    return this.wrappers[Math.min(level, this.wrappers.length - 1)] as ImageWrapper;
  }
}
