-- Writing records back, after everything has been read: whatever Redis refuses, it refuses before the first change.

-- Seconds that a finished record outlives Celery's result, so that what removes it finds where it is listed.
local GRACE = 604800

-- Celery's result, as Celery's backend writes it with result_extended.
local function meta_of(task)
  local row, result, children, args, kwargs, retries, date_done = task.row, task.result or '', nil, nil, nil, nil, nil
  children, args, kwargs, retries, date_done = row[CHILDREN], row[ARGS], row[KWARGS], row[RETRIES], task.date_done or ''
  local group, parent = row[GROUP], row[PARENT]
  return OURS .. quote(task.id)
    .. ', "status": ' .. quote(row[STATE])
    .. ', "result": ' .. (result == '' and 'null' or result)
    .. ', "traceback": ' .. quote(task.traceback or '')
    .. ', "children": ' .. (children == '' and '[]' or children)
    .. (date_done == '' and ', "date_done": null' or ', "date_done": "' .. date_done .. '"')
    .. (group == '' and '' or ', "group_id": ' .. quote(group))
    .. (parent == '' and '' or ', "parent_id": ' .. quote(parent))
    .. ', "name": ' .. quote(row[NAME])
    .. ', "args": ' .. (args == '' and 'null' or args)
    .. ', "kwargs": ' .. (kwargs == '' and 'null' or kwargs)
    .. ', "worker": ' .. quote(row[WORKER])
    .. ', "retries": ' .. (retries == '' and '0' or retries)
    .. ', "queue": ' .. quote(row[QUEUE]) .. '}'
end

-- Give numbers to the records that are new, in their order. A number is the time of enqueueing where that is greater
-- than all before, and one more than the last otherwise.
local function give_numbers(tasks)
  local last, lead
  local members, count = {}, 0
  for _, task in ipairs(tasks) do
    if task.numbered or task.dated then
      local row = task.row
      local enqueued = tonumber(row[ENQUEUED]) or 0
      if not last then
        local found = call('HMGET', NUMBERS, 'last', 'lead')
        last, lead = tonumber(found[1]) or 0, tonumber(found[2]) or 0
      end
      if task.numbered or enqueued > tonumber(row[NUMBER]) then
        if enqueued > last then
          last, row[NUMBER] = enqueued, row[ENQUEUED]
        else
          last = last + 1
          row[NUMBER] = string.format('%.0f', last)
        end
        members[count + 1], members[count + 2] = row[NUMBER], task.id
        count = count + 2
      end
      if enqueued > 0 then
        lead = math.max(lead, tonumber(row[NUMBER]) - enqueued)
      end
    end
  end
  if not last then
    return
  end
  for first = 1, count, MOST_KEYS do
    call('ZADD', INDEX, unpack(members, first, math.min(first + MOST_KEYS - 1, count)))
  end
  call('HSET', NUMBERS, 'last', string.format('%.0f', last), 'lead', string.format('%.0f', lead))
end

-- Members by command, kind of index and value: those of many tasks go in one command.
local function note(notes, kind, value, id)
  local values = notes[kind]
  if not values then
    values = {}
    notes[kind] = values
  end
  local ids = values[value]
  if ids then
    ids[#ids + 1] = id
  else
    values[value] = { id }
  end
end

local function move(added, removed, kind, old, new, id)
  if old == new then
    return
  end
  if old and old ~= '' then
    note(removed, kind, old, id)
  end
  if new ~= '' then
    note(added, kind, new, id)
  end
end

local function write_notes(command, notes)
  for kind, values in pairs(notes) do
    for value, ids in pairs(values) do
      for first = 1, #ids, MOST_KEYS do
        call(command, INDEX .. kind .. value, unpack(ids, first, math.min(first + MOST_KEYS - 1, #ids)))
      end
    end
  end
end

local function write_indexes(tasks)
  local added, removed = {}, {}
  for _, task in ipairs(tasks) do
    if task.changed then
      local row, id = task.row, task.id
      move(added, removed, ':state:', task.state, row[STATE], id)
      move(added, removed, ':name:', task.name, row[NAME], id)
      move(added, removed, ':queue:', task.queue, row[QUEUE], id)
      move(added, removed, ':owner:', task.owner, row[OWNER], id)
    end
  end
  -- First what needs memory: a server that is full refuses it, and with it the whole script.
  write_notes('SADD', added)
  write_notes('SREM', removed)
end

-- What is new under its id is not what was revoked under it.
local function forget_marks(tasks)
  local ids = {}
  for _, task in ipairs(tasks) do
    if task.numbered then
      ids[#ids + 1] = task.id
    end
  end
  if #ids == 0 or call('EXISTS', CANCELLED) == 0 then
    return
  end
  for first = 1, #ids, MOST_KEYS do
    call('ZREM', CANCELLED, unpack(ids, first, math.min(first + MOST_KEYS - 1, #ids)))
  end
end

local function write_mark(task)
  local row = task.row
  if row[STATE] == 'REVOKED' or (row[CANCEL] ~= '' and row[FINISHED] == '') then
    call('ZADD', CANCELLED, 'NX', call('TIME')[1], task.id)
  elseif row[CANCEL] ~= '' or task.uncancelled then
    call('ZREM', CANCELLED, task.id)
  end
end

-- Keys and values that are kept for ever: one command writes them all.
local lasting = {}

local function write(key, text, seconds)
  if seconds then
    call('SET', key, text, 'EX', seconds)
  else
    lasting[#lasting + 1] = key
    lasting[#lasting + 1] = text
  end
end

local function write_lasting()
  for first = 1, #lasting, MOST_KEYS do
    call('MSET', unpack(lasting, first, math.min(first + MOST_KEYS - 1, #lasting)))
  end
end

local function write_record(task, seconds)
  local row, id = task.row, task.id
  write(TASK .. id, pack(row), seconds and seconds.record)
  if task.blanked then
    call('DEL', EVENTS .. id)
  end
  if task.events then
    call('RPUSH', EVENTS .. id, unpack(task.events))
  end
  if row[LISTED] ~= '' then
    if seconds then
      call('EXPIRE', EVENTS .. id, seconds.record)
    elseif task.finished and task.finished ~= '' then
      call('PERSIST', EVENTS .. id)
    end
  end
end

-- Write what has changed, and then tell of it. expires: seconds that a finished record is kept, '' for ever.
local function flush(tasks, expires)
  -- As texts: Redis would write each number out anew.
  local kept = expires ~= '' and { result = expires, record = string.format('%d', expires + GRACE) } or nil
  give_numbers(tasks)
  write_indexes(tasks)
  forget_marks(tasks)
  local channels, messages = {}, {}
  for _, task in ipairs(tasks) do
    if task.changed then
      local seconds = task.row[FINISHED] ~= '' and kept or nil
      write_record(task, seconds)
      if task.entered then
        if task.row[CANCEL] ~= '' or task.uncancelled or task.row[STATE] == 'REVOKED' then
          write_mark(task)
        end
        local channel, message = EVENTS .. task.id, 'state'
        if task.meta then
          channel, message = META .. task.id, meta_of(task)
          write(channel, message, seconds and seconds.result)
        elseif task.unwritten then
          call('DEL', META .. task.id)
        end
        channels[#channels + 1], messages[#messages + 1] = channel, message
      end
    end
  end
  write_lasting()
  for index = 1, #channels do
    call('PUBLISH', channels[index], messages[index])
  end
end
