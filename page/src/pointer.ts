/** Turns what a mouse, a pen or a finger does on the picture into boxes and points. */
import type MapBrowserEvent from "ol/MapBrowserEvent";
import PointerInteraction from "ol/interaction/Pointer";
import type { Coordinate } from "ol/coordinate";

/** A shorter way than this, in pixels of the screen, is a click. */
const CLICK_PX = 5;

export interface Gestures {
  /** Whether boxes and points are drawn now; otherwise the picture is moved. */
  drawing(): boolean;
  box(from: Coordinate, to: Coordinate, final: boolean): void;
  click(at: Coordinate, background: boolean): void;
  cancel(): void;
}

export class PromptPointer extends PointerInteraction {
  private start: Coordinate | null = null;
  private startPixel: number[] = [];
  private background = false;

  constructor(private readonly gestures: Gestures) {
    super();
  }

  override handleDownEvent(event: MapBrowserEvent<PointerEvent>): boolean {
    const { button, altKey, ctrlKey } = event.originalEvent;
    if (!this.gestures.drawing() || (button !== 0 && button !== 2)) return false;
    if (this.targetPointers.length > 1) return false;
    this.background = button === 2 || altKey || ctrlKey;
    this.start = event.coordinate;
    this.startPixel = event.pixel;
    return true;
  }

  override handleDragEvent(event: MapBrowserEvent<PointerEvent>): void {
    if (this.start === null) return;
    if (this.targetPointers.length > 1) {
      // A second finger: the picture is moved and zoomed instead.
      this.start = null;
      this.gestures.cancel();
    } else if (!this.background && this.far(event)) {
      this.gestures.box(this.start, event.coordinate, false);
    }
  }

  override handleUpEvent(event: MapBrowserEvent<PointerEvent>): boolean {
    const start = this.start;
    this.start = null;
    if (start === null) return false;
    if (this.far(event) && !this.background) this.gestures.box(start, event.coordinate, true);
    else this.gestures.click(start, this.background);
    return false;
  }

  private far(event: MapBrowserEvent<PointerEvent>): boolean {
    const [x = 0, y = 0] = event.pixel;
    const [startX = 0, startY = 0] = this.startPixel;
    return Math.hypot(x - startX, y - startY) > CLICK_PX;
  }
}
