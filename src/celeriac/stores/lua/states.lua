-- What a transition makes of a record: the rules of celeriac.stores.records.Transition.

local ATTEMPTS_KEPT = 20

-- What a call is, once and for all; and what each delivery of it may have of its own.
local CALL = { name = NAME, args = ARGS, kwargs = KWARGS, owner = OWNER, root_id = ROOT, parent_id = PARENT, group_id = GROUP }
local DELIVERY = { queue = QUEUE, eta = ETA, expires = EXPIRES, retries = RETRIES }
local OTHERS = { worker = WORKER, children = CHILDREN }

local function add_event(row, text)
  local events = row.events
  if events then
    events[#events + 1] = text
  else
    row.events = { text }
  end
end

local function add_state_event(row, at, err)
  add_event(row, '["state",' .. at .. ',' .. quote(row[STATE]) .. ',' .. (row[RETRIES] or '0') .. ','
    .. quote(row[WORKER]) .. ',' .. quote(err) .. ']')
  row.entered = true
end

local function begin_attempt(row, at)
  local head = '[' .. (row[RETRIES] or '0') .. ',' .. at .. ',' .. quote(row[WORKER] or '')
  local lines = row[ATTEMPTS]
  if lines then
    local _, breaks = string.gsub(lines, '\n', '\n')
    if breaks + 2 > ATTEMPTS_KEPT then
      lines = string.sub(lines, string.find(lines, '\n', 1, true) + 1)
    end
    head = lines .. '\n' .. head
  end
  set(row, ATTEMPTS, head .. ',"STARTED",null]')
  set(row, OPEN, #head)
end

local function update_attempt(row, err)
  if not row[OPEN] then
    return
  end
  set(row, ATTEMPTS, string.sub(row[ATTEMPTS], 1, row[OPEN]) .. ',' .. quote(row[STATE]) .. ',' .. quote(err) .. ']')
  if READY[row[STATE]] or row[STATE] == 'RETRY' then
    set(row, OPEN, false)
  end
end

-- A step is what a transition gives: id, state, at (microseconds), stock, and fields by name.
local function enter(row, step)
  local state, at = step.state, step.at
  if row[STATE] ~= state then
    set(row, STATE, state)
  end
  for name, field in pairs(OTHERS) do
    local value = step[name]
    if value and value ~= row[field] then
      set(row, field, value)
    end
  end
  row.result, row.traceback, row.date_done = step.result, step.traceback, step.date_done
  if READY[state] then
    set(row, FINISH, at)
  elseif row[FINISH] then
    set(row, FINISH, false)
  end
  if state == 'STARTED' then
    set(row, STARTED, at)
    begin_attempt(row, at)
  else
    update_attempt(row, step.error)
  end
  if step.stock or row[STOCK] then
    set(row, STOCK, step.stock)
  end
  row.meta, row.written = not step.stock, nil
  add_state_event(row, at, step.error)
end

local function fill(row, step, names)
  for name, field in pairs(names) do
    local value = step[name]
    if value and not row[field] then
      set(row, field, value)
    end
  end
end

local function take(row, step, names)
  for name, field in pairs(names) do
    local value = step[name]
    if value and value ~= row[field] then
      set(row, field, value)
    end
  end
end

local function start_over(row, step)
  for _, field in ipairs({ ETA, EXPIRES, STARTED, FINISH, WORKER, CHILDREN, OPEN, CANCEL, STOCK, PROGRESS }) do
    if row[field] then
      set(row, field, false)
    end
  end
  row.uncancelled, row.written = true, nil
  set(row, RETRIES, '0')
  take(row, step, CALL)
  take(row, step, DELIVERY)
  set(row, STATE, 'PENDING')
  set(row, ENQUEUED, step.at)
  row.renumber, row.meta, row.unwritten = true, false, true
  add_state_event(row, step.at, false)
end

local function applies(row, step)
  local state = current(row)
  if state == 'SUCCESS' or state == 'REVOKED' then
    return false
  end
  if not READY[state] or step.state == 'STARTED' or step.state == 'RETRY' then
    return true
  end
  return READY[step.state] and (tonumber(step.retries) or 0) > (tonumber(row[RETRIES]) or 0)
end

-- A stock worker's word counts, unless it has been taken in already or is no longer what is written.
local function is_news(row, step)
  if row[STOCK] == step.stock then
    return false
  end
  local text = call('GET', META .. row.id)
  return text and redis.sha1hex(text) == step.stock
end

local function pend(row, step)
  if row.known then
    look(row)
  end
  if not row.known then
    take(row, step, CALL)
    take(row, step, DELIVERY)
    set(row, STATE, 'PENDING')
    set(row, ENQUEUED, step.at)
    row.known, row.renumber = true, true
    if step.replay then
      row.unwritten = true
    end
    add_state_event(row, step.at, false)
  elseif step.replay then
    start_over(row, step)
  else
    fill(row, step, CALL)
    fill(row, step, DELIVERY)
    if not row[ENQUEUED] then
      set(row, ENQUEUED, step.at)
      row.dated = true
    end
  end
end

local function apply(row, step)
  if step.state == 'PENDING' then
    return pend(row, step)
  end
  if step.stock then
    if not is_news(row, step) then
      return
    end
  else
    look(row)
    if (row.known or row.written) and not applies(row, step) then
      return
    end
  end
  if not row.known then
    row.known, row.renumber = true, true
  end
  fill(row, step, CALL)
  take(row, step, DELIVERY)
  enter(row, step)
end
