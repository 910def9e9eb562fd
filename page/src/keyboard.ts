/** Everything that the keyboard does. Single letters work only while the picture has the focus. */
import { byId } from "./dom";
import type { Editor } from "./editor";
import { type Viewer } from "./viewer";

const STEP_PX = 4;
const LARGE_STEP_PX = 40;

const ARROWS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export class Keyboard {
  private cross: [number, number] | null = null;
  private corner: [number, number] | null = null;

  constructor(
    private readonly editor: Editor,
    private readonly viewer: Viewer,
  ) {
    document.addEventListener("keydown", (event) => {
      if (this.everywhere(event)) event.preventDefault();
    });
    const target = byId("viewer");
    target.addEventListener("keydown", (event) => {
      if (this.onPicture(event)) event.preventDefault();
    });
    target.addEventListener("blur", () => this.hideCross());
    target.addEventListener("pointerdown", () => this.hideCross());
  }

  private everywhere(event: KeyboardEvent): boolean {
    const target = event.target as HTMLElement;
    if (target.closest("input, select, dialog") !== null) return false;
    const { editor } = this;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z" && !event.shiftKey) editor.undo();
      else if (key === "y" || key === "z") editor.redo();
      else return false;
      return true;
    }
    const onButton = target.closest("button, a") !== null;
    if (key === "enter" && !onButton) editor.keep();
    else if (key === "escape") this.escape();
    else if ((key === "delete" || key === "backspace") && editor.selected !== null) {
      editor.remove(editor.selected);
    } else return false;
    return true;
  }

  private escape(): void {
    if (this.corner !== null) {
      this.corner = null;
      this.viewer.showCrosshair(this.cross, null);
    } else if (this.editor.now.draft !== null) this.editor.discard();
    else this.editor.select(null);
  }

  private onPicture(event: KeyboardEvent): boolean {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const arrow = ARROWS[event.key];
    if (arrow !== undefined) {
      this.moveCross(arrow, event.shiftKey ? LARGE_STEP_PX : STEP_PX);
      return true;
    }
    const action = this.actions[event.key.toLowerCase()];
    action?.();
    return action !== undefined;
  }

  private readonly actions: Record<string, () => void> = {
    " ": () => this.point(1),
    x: () => this.point(0),
    b: () => this.box(),
    "1": () => this.editor.choose(0),
    "2": () => this.editor.choose(1),
    "3": () => this.editor.choose(2),
    m: () => this.editor.showThree(),
    a: () => byId("automask").click(),
    d: () => byId("draw").click(),
    v: () => byId("move").click(),
    "+": () => this.viewer.zoom(1.5),
    "=": () => this.viewer.zoom(1.5),
    "-": () => this.viewer.zoom(1 / 1.5),
    "0": () => this.viewer.fit(),
  };

  private moveCross([dx, dy]: [number, number], step: number): void {
    const { picture } = this.editor;
    if (picture === null) return;
    const { at, resolution } = this.viewer.middle();
    const [x, y] = this.cross ?? at;
    const far = step * resolution;
    const clamp = (value: number, most: number) =>
      Math.round(10 * Math.min(Math.max(value, 0), most)) / 10;
    this.cross = [clamp(x + dx * far, picture.width), clamp(y + dy * far, picture.height)];
    this.viewer.showCrosshair(this.cross, this.corner);
  }

  private place(): [number, number] {
    this.cross ??= this.viewer.middle().at;
    this.viewer.showCrosshair(this.cross, this.corner);
    return this.cross;
  }

  private point(label: 0 | 1): void {
    if (this.editor.picture === null) return;
    const [x, y] = this.place();
    this.editor.point({ x, y, label });
  }

  private box(): void {
    if (this.editor.picture === null) return;
    const [x, y] = this.place();
    if (this.corner === null) {
      this.corner = [x, y];
      return;
    }
    const [x0, y0] = this.corner;
    this.corner = null;
    this.viewer.showCrosshair(this.cross, null);
    if (x !== x0 && y !== y0) {
      this.editor.box([Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)]);
    }
  }

  private hideCross(): void {
    this.cross = this.corner = null;
    this.viewer.showCrosshair(null, null);
  }
}
