/** The panel beside the picture: it shows what the editor knows. */
import { byId, count, counted, make, swatch, useArrows } from "./dom";
import type { Editor } from "./editor";
import { classOf, type Item, type ObjectClass, type Snapshot } from "./model";

export class Panel {
  private readonly rows = new Map<number, { item: Item; color: string; row: HTMLElement }>();
  private shownItems: Item[] | null = null;
  private shownClasses: ObjectClass[] | null = null;
  private shownActive = 0;
  private shownSelected: number | null = null;
  private shownHovered: number | null = null;
  private readonly list = byId("items");

  constructor(private readonly editor: Editor) {
    useArrows(byId("masks"));
    useArrows(byId("classes"));
  }

  show(): void {
    const { editor } = this;
    const { now } = editor;
    this.showCurrent(now);
    this.showSearch();
    this.showClasses(now);
    this.showItems(now);
    const enable = (id: string, enabled: boolean) => {
      byId<HTMLButtonElement>(id).disabled = !enabled;
    };
    enable("undo", editor.canUndo);
    enable("redo", editor.canRedo);
    for (const id of ["geojson", "coco", "labels"]) enable(id, now.items.length > 0);
    for (const id of ["curl", "python"]) enable(id, editor.asked !== null);
    enable("automask", editor.picture !== null && editor.type !== "");
  }

  private showCurrent({ draft }: Snapshot): void {
    const masks = draft?.masks ?? [];
    const enable = (id: string, enabled: boolean) => {
      byId<HTMLButtonElement>(id).disabled = !enabled;
    };
    enable("keep", masks.length > 0);
    enable("discard", draft !== null);
    enable("three", masks.length > 0 && draft?.three === false);
    this.say(this.hint());
    const group = byId("masks");
    const choice = draft?.three === true && masks.length > 1;
    group.hidden = !choice;
    if (!choice) return;
    const focused = group.contains(document.activeElement);
    group.replaceChildren(
      ...masks.map((mask, i) => {
        const button = radio(i === draft.chosen, () => this.editor.choose(i));
        button.append(`Mask ${i + 1}`, make("small", "", percent(mask.quality)));
        return button;
      }),
    );
    if (focused) (group.children[draft.chosen] as HTMLElement).focus();
  }

  private say(text: string): void {
    const hint = byId("hint");
    if (hint.textContent !== text) hint.textContent = text;
  }

  private hint(): string {
    const { editor } = this;
    const { draft } = editor.now;
    if (editor.picture === null) return "Open a picture to begin.";
    if (editor.waiting) return "Looking …";
    if (draft === null) {
      return editor.notice || "Drag a box around an object, or click on it.";
    }
    const mask = draft.masks?.[draft.chosen];
    if (mask === undefined) {
      if (draft.failed) return "The server gave no answer for this. Try again, or press Discard.";
      return editor.notice || "Nothing found here. Add a click on the object, or draw another box.";
    }
    const figures = `Quality ${percent(mask.quality)}, ${counted(mask.area, "pixel")}.`;
    return editor.notice || `${figures} Click to refine, right click to leave out, or keep it.`;
  }

  private showSearch(): void {
    const { search } = this.editor;
    const progress = byId<HTMLProgressElement>("progress");
    byId("search-note").textContent = this.editor.found;
    byId("automask").hidden = search !== null;
    byId("stop").hidden = search === null;
    progress.hidden = search === null;
    if (search === null) return;
    // Without a value, the bar shows that something is going on.
    if (search.total === 0) progress.removeAttribute("value");
    else progress.value = search.done / search.total;
  }

  private showClasses({ classes, activeClass }: Snapshot): void {
    if (classes === this.shownClasses && activeClass === this.shownActive) return;
    this.shownClasses = classes;
    this.shownActive = activeClass;
    const group = byId("classes");
    const focused = group.contains(document.activeElement);
    group.replaceChildren(
      ...classes.map(({ id, name, color }) => {
        const button = radio(id === activeClass, () => this.editor.useClass(id));
        button.append(swatch(color), name);
        return button;
      }),
    );
    if (focused) group.querySelector<HTMLElement>('[aria-checked="true"]')?.focus();
  }

  private showItems(now: Snapshot): void {
    const { items } = now;
    byId("count").textContent = count(items.length);
    byId("none").hidden = items.length > 0;
    if (items !== this.shownItems) {
      const ids = new Set(items.map((item) => item.id));
      for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id);
      this.list.replaceChildren(...items.map((item) => this.rowOf(item, now)));
      this.shownItems = items;
      this.shownSelected = this.shownHovered = null;
    }
    this.mark(this.shownHovered, false, null);
    this.mark(this.shownSelected, null, false);
    this.mark(this.editor.hovered, true, null);
    this.mark(this.editor.selected, null, true);
    this.shownHovered = this.editor.hovered;
    this.shownSelected = this.editor.selected;
  }

  private mark(id: number | null, hovered: boolean | null, selected: boolean | null): void {
    const row = id === null ? undefined : this.rows.get(id)?.row;
    if (row === undefined) return;
    if (hovered !== null) row.classList.toggle("hovered", hovered);
    if (selected === null) return;
    row.querySelector(".choose")?.setAttribute("aria-pressed", String(selected));
    if (selected && this.shownSelected !== id) row.scrollIntoView({ block: "nearest" });
  }

  private rowOf(item: Item, now: Snapshot): HTMLElement {
    const { name, color } = classOf(now, item.classId);
    const old = this.rows.get(item.id);
    if (old !== undefined && old.item === item && old.color === color) {
      old.row.querySelector(".choose")?.setAttribute("aria-pressed", "false");
      old.row.classList.remove("hovered");
      return old.row;
    }
    const row = make("li");
    const choose = make("button", "choose");
    choose.type = "button";
    choose.setAttribute("aria-pressed", "false");
    const figures = `${percent(item.quality)} · ${count(item.area)} px`;
    choose.append(swatch(color), make("span", "", `${name} ${item.id}`), make("span", "figures", figures));
    choose.addEventListener("click", () => {
      this.editor.select(this.editor.selected === item.id ? null : item.id);
    });
    const remove = make("button", "delete", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete ${name} ${item.id}`);
    remove.addEventListener("click", () => {
      const beside = row.nextElementSibling ?? row.previousElementSibling;
      this.editor.remove(item.id);
      (beside?.querySelector<HTMLElement>(".delete") ?? byId("viewer")).focus();
    });
    row.append(choose, remove);
    row.addEventListener("pointerenter", () => this.editor.hover(item.id));
    row.addEventListener("pointerleave", () => this.editor.hover(null));
    choose.addEventListener("focus", () => this.editor.hover(item.id));
    choose.addEventListener("blur", () => this.editor.hover(null));
    this.rows.set(item.id, { item, color, row });
    return row;
  }
}

function radio(checked: boolean, onClick: () => void): HTMLButtonElement {
  const button = make("button");
  button.type = "button";
  button.setAttribute("role", "radio");
  button.setAttribute("aria-checked", String(checked));
  button.tabIndex = checked ? 0 : -1;
  button.addEventListener("click", onClick);
  return button;
}

/** Return a quality as a person reads it. The model predicts a little more than 1 at times. */
function percent(quality: number): string {
  return `${Math.round(100 * Math.min(1, Math.max(0, quality)))} %`;
}
