/** The states of the page that undo and redo go back and forth between. */
export class History<State> {
  private past: State[] = [];
  private future: State[] = [];

  constructor(private now: State) {}

  get present(): State {
    return this.now;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  /** Make a step that can be undone. */
  commit(next: State): void {
    this.past.push(this.now);
    if (this.past.length > 200) this.past.shift();
    this.future = [];
    this.now = next;
  }

  /** Change the present without a step: an answer has arrived for it. */
  amend(next: State): void {
    this.now = next;
  }

  undo(): void {
    const before = this.past.pop();
    if (before === undefined) return;
    this.future.push(this.now);
    this.now = before;
  }

  redo(): void {
    const after = this.future.pop();
    if (after === undefined) return;
    this.past.push(this.now);
    this.now = after;
  }

  reset(state: State): void {
    this.past = [];
    this.future = [];
    this.now = state;
  }
}
