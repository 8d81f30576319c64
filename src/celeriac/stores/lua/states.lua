-- What a transition makes of a record: the rules of celeriac.stores.records.Transition.
--
-- A step has the fields of a transition, as texts; '' or nil where there is nothing. ``rare`` says whether it has any of
-- owner, parent_id, group_id, eta, expires, children.

local RARE_CALL = { owner = OWNER, parent_id = PARENT, group_id = GROUP }
local RARE_DELIVERY = { eta = ETA, expires = EXPIRES }

local function take(row, step, places)
  for name, place in pairs(places) do
    if step[name] then
      row[place] = step[name]
    end
  end
end

local function fill(row, step, places)
  for name, place in pairs(places) do
    if step[name] and row[place] == '' then
      row[place] = step[name]
    end
  end
end

-- What a call is, once and for all.
local function fill_call(row, step)
  if row[NAME] == '' then row[NAME] = step.name end
  if row[ARGS] == '' then row[ARGS] = step.args end
  if row[KWARGS] == '' then row[KWARGS] = step.kwargs end
  if row[ROOT] == '' then row[ROOT] = step.root_id end
  if step.rare then
    fill(row, step, RARE_CALL)
  end
end

-- What each delivery of it may have of its own.
local function take_delivery(row, step)
  if step.queue ~= '' then row[QUEUE] = step.queue end
  if step.retries ~= '' then row[RETRIES] = step.retries end
  if step.rare then
    take(row, step, RARE_DELIVERY)
  end
end

local function enter(task, step)
  local row, state, at, err = task.row, step.state, step.at, step.error or ''
  row[STATE] = state
  if step.worker ~= '' then
    row[WORKER] = step.worker
  end
  if step.children then
    row[CHILDREN] = step.children
  end
  row[FINISHED] = READY[state] and at or ''
  row[STOCK] = step.stock or ''
  if state == 'STARTED' then
    row[STARTED] = at
    begin_attempt(row, at)
  else
    update_attempt(row, err)
  end
  task.result, task.traceback, task.date_done = step.result, step.traceback, step.date_done
  task.meta, task.written = not step.stock, nil
  add_state_event(task, at, err)
end

local function start_over(task, step)
  local row = task.row
  for _, place in ipairs({ ETA, EXPIRES, STARTED, FINISHED, WORKER, CHILDREN, CANCEL, STOCK, PROGRESS }) do
    row[place] = ''
  end
  row[RETRIES] = '0'
  if step.name ~= '' then row[NAME] = step.name end
  if step.args ~= '' then row[ARGS] = step.args end
  if step.kwargs ~= '' then row[KWARGS] = step.kwargs end
  if step.root_id ~= '' then row[ROOT] = step.root_id end
  take(row, step, RARE_CALL)
  take_delivery(row, step)
  row[STATE], row[ENQUEUED] = 'PENDING', step.at
  task.written, task.uncancelled, task.numbered, task.meta, task.unwritten = nil, true, true, false, true
  add_state_event(task, step.at, '')
end

local function create(task, step)
  local row = task.row
  row[STATE], row[ENQUEUED] = 'PENDING', step.at
  row[NAME], row[ARGS], row[KWARGS], row[ROOT] = step.name, step.args, step.kwargs, step.root_id
  row[QUEUE], row[RETRIES] = step.queue, step.retries
  if step.rare then
    take(row, step, RARE_CALL)
    take(row, step, RARE_DELIVERY)
  end
  task.known, task.numbered, task.unwritten = true, true, step.replay
  add_state_event(task, step.at, '')
end

local function fill_in(task, step)
  local row = task.row
  fill_call(row, step)
  if row[QUEUE] == '' then row[QUEUE] = step.queue end
  if row[RETRIES] == '' then row[RETRIES] = step.retries end
  if step.rare then
    fill(row, step, RARE_DELIVERY)
  end
  if row[ENQUEUED] == '' then
    row[ENQUEUED] = step.at
    task.dated = true
  end
  task.changed = true
end

local function applies(task, step)
  local state = current(task)
  if state == 'SUCCESS' or state == 'REVOKED' then
    return false
  end
  if not READY[state] or step.state == 'STARTED' or step.state == 'RETRY' then
    return true
  end
  return READY[step.state] and (tonumber(step.retries) or 0) > (tonumber(task.row[RETRIES]) or 0)
end

-- A stock worker's word counts, unless it has been taken in already or is no longer what is written.
local function is_news(task, step)
  if task.row[STOCK] == step.stock then
    return false
  end
  return task.text and redis.sha1hex(task.text) == step.stock
end

local function apply(task, step)
  if step.state == 'PENDING' then
    if task.known then
      look(task)
    end
    if not task.known then
      create(task, step)
    elseif step.replay then
      start_over(task, step)
    else
      fill_in(task, step)
    end
    return
  end
  if step.stock then
    if not is_news(task, step) then
      return
    end
  else
    look(task)
    if (task.known or task.written) and not applies(task, step) then
      return
    end
  end
  if not task.known then
    task.known, task.numbered = true, true
  end
  fill_call(task.row, step)
  take_delivery(task.row, step)
  enter(task, step)
end
